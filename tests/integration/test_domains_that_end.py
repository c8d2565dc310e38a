# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains that power off by themselves in the moment in which they are to be ended."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Iterator

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor

from _cbt.errors import HypervisorError
from _cbt.hypervisor import definition
from _cbt.hypervisor.connection import Domain, Session
from _cbt.hypervisor.domain import read_domain
from _cbt.operations.backup import preparation

MIB = 1 << 20


class _PoweredOff:
    """A domain of libvirt that powers off when ``method`` is called, before the call reaches libvirt."""

    def __init__(self, api: t.Any, method: str) -> None:
        self._api, self._method = api, method

    def __getattr__(self, name: str) -> t.Any:
        if name == self._method:
            self._api.destroy()
        return getattr(self._api, name)


@dataclasses.dataclass(frozen=True)
class _Ending(Domain):
    method: str = ""

    @property
    def api(self) -> t.Any:
        return _PoweredOff(super().api, self.method)


@pytest.fixture
def running(hypervisor: Hypervisor) -> Iterator[BlockDomain]:
    """A running domain."""
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)]) as domain:
        yield domain


def _ending(session: Session, running: BlockDomain, method: str) -> Domain:
    return _Ending(session, running.name, session.domain(running.name).uuid, method)


def test_a_domain_that_powers_off_before_its_shutdown_is_shut_down(session: Session, running: BlockDomain) -> None:
    definition.shut_down(_ending(session, running, "shutdown"), 10.0, lambda: None)
    assert not running.running


def test_a_domain_that_powers_off_before_it_is_stopped_is_stopped(session: Session, running: BlockDomain) -> None:
    definition.stop(_ending(session, running, "destroy"))
    assert not running.running


@pytest.mark.parametrize("method", ["metadata", "blockStats", "destroyFlags"])
def test_a_paused_domain_that_powers_off_before_it_is_ended_fails_no_backup(
    method: str, session: Session, running: BlockDomain
) -> None:
    running.destroy()
    domain = _ending(session, running, method)
    with preparation.started(domain, True, False, lambda: read_domain(domain)):
        assert running.running
    assert not running.running


def test_a_running_domain_that_cannot_be_shut_down_is_an_error(session: Session, running: BlockDomain) -> None:
    with pytest.raises(HypervisorError, match=f"{running.name} did not shut down within 0 s"):
        definition.shut_down(session.domain(running.name), 0.0, lambda: None)
    assert running.running
