# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy is connected to a network that does not lead out of the host, and an existing domain is started once."""

from __future__ import annotations

from typing import Any

import pytest

from _cbt.errors import Refused
from _cbt.operations.restore.existing import begin
from _cbt.operations.restore.isolation import check_isolated, ensure_isolated
from _cbt.operations.restore.plan import MachineOptions

LEADS_OUT = "<network><name>n</name><forward mode='nat'/></network>"
ISOLATED = "<network><name>n</name></network>"


class Network:
    """libvirt's network; ``saved`` is its definition for the next start."""

    def __init__(self, xml: str, active: bool, saved: str | None = None) -> None:
        self._xml, self._saved, self.active = xml, saved or xml, active

    def name(self) -> str:
        """Its name."""
        return "n"

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802  libvirt's name
        """Its definition."""
        return self._saved if flags else self._xml

    def isActive(self) -> bool:  # noqa: N802  libvirt's name
        """Whether it runs."""
        return self.active

    def create(self) -> None:
        """Start it."""
        assert not self.active
        self.active = True


class Libvirt:
    """A session of libvirt with networks, and a domain that is shut off at first."""

    def __init__(self, *networks: Network) -> None:
        self.networks = list(networks)
        self.name, self.active, self.api, self.session = "web1", False, self, self

    def listAllNetworks(self) -> list[Network]:  # noqa: N802  libvirt's name
        """All networks."""
        return self.networks

    def networkDefineXML(self, xml: str) -> Network:  # noqa: N802  libvirt's name
        """Define a network."""
        assert xml == "<network><name>n</name></network>"
        self.networks.append(Network(xml, False))
        return self.networks[-1]

    def isActive(self) -> bool:  # noqa: N802  libvirt's name
        """Whether the domain runs."""
        return self.active

    def create(self) -> None:
        """Start the domain."""
        self.active = True


@pytest.mark.parametrize(
    "network",
    [
        Network(LEADS_OUT, True),
        Network(LEADS_OUT, False),
        Network(ISOLATED, True, saved=LEADS_OUT),
        Network(LEADS_OUT, True, saved=ISOLATED),
    ],
)
def test_a_network_that_leads_out_of_the_host_is_refused(network: Network) -> None:
    session: Any = Libvirt(network)
    for check in (check_isolated, ensure_isolated):
        with pytest.raises(Refused, match="The network n leads out of the host"):
            check(session, "n")


@pytest.mark.parametrize("networks", [(), (Network(ISOLATED, False),), (Network(ISOLATED, True),)])
def test_an_isolated_network_is_defined_and_started_as_needed(networks: tuple[Network, ...]) -> None:
    session: Any = Libvirt(*networks)
    before = len(networks)
    check_isolated(session, "n")
    assert len(session.networks) == before
    for _each in range(2):
        ensure_isolated(session, "n")
        assert [each.active for each in session.networks] == [True]


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("check_only", [False, True])
def test_an_existing_domain_is_started_once_and_only_if_requested(start: bool, check_only: bool) -> None:
    domain: Any = Libvirt()
    options = MachineOptions(start=start, isolated_network="n")
    assert begin(domain, options, check_only) == start
    assert domain.active == (start and not check_only)
    assert len(domain.networks) == (0 if check_only else 1)
    assert begin(domain, options, check_only) == (start and check_only)
