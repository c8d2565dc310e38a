# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain that is listed and then undefined, on libvirt's test driver."""

from __future__ import annotations

import typing as t

import pytest

from _cbt.errors import HypervisorError

pytest.importorskip("libvirt")
from _cbt.hypervisor import definition
from _cbt.hypervisor.connection import Domain, Session, connect
from _cbt.hypervisor.domain import running_users_of

DOMAIN = """
<domain type='test'>
  <name>{name}</name>
  <memory>1</memory>
  <os><type>hvm</type></os>
  <devices><disk type='file'><source file='/images/{name}.qcow2'/><target dev='vda'/></disk></devices>
</domain>
"""


@pytest.fixture
def session() -> t.Iterator[Session]:
    with connect("test:///default") as made:
        for name in ("gone", "stays"):
            made.api.defineXML(DOMAIN.format(name=name)).create()
        yield made


def listed_too_late(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the domain ``gone`` end just after the domains are listed."""
    real = Session.domains

    def domains(self: Session, active_only: bool = False) -> list[Domain]:
        found = real(self, active_only)
        gone = self.api.lookupByName("gone")
        gone.destroy()
        gone.undefine()
        return found

    monkeypatch.setattr(Session, "domains", domains)


def test_a_domain_that_ends_after_it_was_listed_uses_no_image(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert running_users_of(session, "/images/gone.qcow2") == ["gone"]
    assert running_users_of(session, "/images/stays.qcow2") == ["stays"]
    listed_too_late(session, monkeypatch)
    assert running_users_of(session, "/images/gone.qcow2") == []


def images(session: Session) -> set[str]:
    """The images of our domains: the test driver has a domain of its own."""
    return {path for _uuid, path in definition.defined_sources(session) if path.startswith("/images/")}


def test_a_domain_undefined_after_it_was_listed_has_no_disks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert images(session) == {"/images/gone.qcow2", "/images/stays.qcow2"}
    listed_too_late(session, monkeypatch)
    assert images(session) == {"/images/stays.qcow2"}


def test_the_xml_of_a_domain_that_libvirt_refuses_is_an_error(session: Session) -> None:
    with pytest.raises(HypervisorError, match="Cannot read domain stays: "):
        session.domain("stays").xml(1 << 30)
