# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""At its turn a domain is processed by one host of a cluster at most, and hosts that did not report are passed on."""

from __future__ import annotations

import itertools

import pytest
from _cluster import Report, Turn, needs_others, report_of, turn

ORDER = ["kvm1", "kvm2", "kvm3"]
STATES = ["running", "paused", "crashed", "pmsuspended", "shutoff", "absent", "silent"]
ACTIVE = STATES[:4]


def report(host: str, state: str) -> Report:
    if state == "silent":
        return Report(host, silent="unreachable")
    return Report(host, f"{host}.example.com", None if state == "absent" else state)


def decided(here: str, states: dict[str, str]) -> Turn:
    own = report(here, states[here])
    others = [report(host, states[host]) for host in ORDER if host != here] if needs_others(own) else []
    return turn(own, others, ORDER)


def test_every_combination_of_reports() -> None:
    for combination in itertools.product(STATES, repeat=3):
        states = dict(zip(ORDER, combination))
        active = [host for host in ORDER if states[host] in ACTIVE]
        processed = []
        for here in ORDER:
            made = decided(here, states)
            if made.not_here is None:
                processed.append(here)
                told = {*made.options["silent_hosts"], *(name.split(".")[0] for name in made.options["answered_hosts"])}
                assert told == {*ORDER} - {here}
                assert all(
                    states[name.split(".")[0]] in ("shutoff", "absent") for name in made.options["answered_hosts"]
                )
            if states[here] == "shutoff" and any(host != here for host in active):
                assert made.not_here is not None, states  # it is never read as shut off
        if "silent" not in combination:
            holding = [host for host in ORDER if states[host] == "shutoff"]
            assert [host for host in processed if states[host] != "absent"] == (active or holding[:1]), states


@pytest.mark.parametrize(
    "result",
    [
        {"unreachable": True, "msg": "no route"},
        {"failed": True, "msg": "no route"},
        {"failed": True, "host": "kvm1", "domains": [], "msg": "no route"},
        {"msg": "no route"},
    ],
)
def test_a_host_without_a_listing_is_silent(result: dict[str, object]) -> None:
    assert report_of("kvm1", result) == Report("kvm1", silent="no route")


def test_a_domain_that_is_active_here_needs_no_query_of_other_hosts() -> None:
    assert [state for state in STATES if not needs_others(report("kvm1", state))] == ACTIVE
