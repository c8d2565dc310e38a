# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides at a domain's turn whether a host of a cluster may process it, from what the hosts report. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

SHUT_OFF = "shutoff"


@dataclasses.dataclass(frozen=True)
class Report:
    """What one host reports of a domain.

    ``name`` is the name that the host gives itself. ``state`` is None if the host does not have the domain. ``silent``
    is why it did not report, or None.
    """

    host: str
    name: str = ""
    state: str | None = None
    silent: str | None = None


def report_of(host: str, result: t.Mapping[str, t.Any]) -> Report:
    """Return the report in a result of cbt_domain_info, which was asked for one domain."""
    if result.get("failed") or result.get("unreachable") or "domains" not in result:
        return Report(host, silent=str(result.get("msg") or "no result"))
    return Report(host, result["host"], next((domain["state"] for domain in result["domains"]), None))


@dataclasses.dataclass(frozen=True)
class Turn:
    """The decision: ``not_here`` is why the domain is not processed here, or None. ``options`` are those of the run."""

    not_here: str | None
    options: t.Mapping[str, t.Any]


def needs_others(own: Report) -> bool:
    """Whether other hosts must be queried. No other host runs a domain that is active here."""
    return own.silent is not None or own.state in (None, SHUT_OFF)


def turn(own: Report, others: t.Sequence[Report], order: t.Sequence[str]) -> Turn:
    """Decide from the report of this host and those of ``others``, which are empty if they were not queried.

    A domain that is shut off everywhere belongs to the first host in ``order`` that has it.
    """
    reported = [each for each in others if each.silent is None]
    for each in reported:
        if each.state not in (None, SHUT_OFF):
            return Turn(f"it is {each.state} on {each.host}", {})
    for each in reported:
        if each.state is not None and order.index(each.host) < order.index(own.host):
            return Turn(f"it is shut off here and on {each.host}, which comes first in the cluster", {})
    answered = {each.host: each.name for each in reported}
    silent = [host for host in order if host not in answered and host != own.host]
    return Turn(None, {"silent_hosts": silent, "answered_hosts": list(answered.values())})
