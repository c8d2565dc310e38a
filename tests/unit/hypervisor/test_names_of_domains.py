# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains by name, UUID and pattern, with libvirt's test driver."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import libvirt
import pytest
from libvirt_test_host import BARE, empty_host

from _cbt.errors import Refused
from _cbt.hypervisor.connection import Session
from _cbt.operations.domains import list_domains
from _cbt.operations.tracking.capability import set_capability

NAMES = ["[prod] web1", "p", "web1", "web*", "[12]", "1"]


@pytest.fixture
def session() -> Iterator[Session]:
    """A host with domains of these names."""
    with empty_host() as opened:
        for name in NAMES:
            _define(opened, name)
        yield opened


def _define(session: Session, name: str) -> str:
    made = session.api.defineXML(BARE.format(name=name))
    return str(made.UUIDString())


@pytest.mark.parametrize(
    ("patterns", "excluded", "found", "missing"),
    [
        (["*"], [], NAMES, []),
        (["[prod] web1"], [], ["[prod] web1"], []),
        (["[prod]*"], [], ["[prod] web1"], []),
        (["*"], ["[prod] web1", "[1*"], ["p", "web1", "web*", "1"], []),
        (["web*"], [], ["web1", "web*"], []),
        (["[12]", "[34]", "web[1]"], [], ["[12]"], ["[34]", "web[1]"]),
        (["web1"], ["web1"], [], []),
    ],
)
def test_only_the_star_and_the_question_mark_are_special(
    session: Session, patterns: list[str], excluded: list[str], found: list[str], missing: list[str]
) -> None:
    listing = list_domains(session, patterns, excluded)
    assert sorted(each["name"] for each in listing.domains) == sorted(found)
    assert list(listing.missing) == missing


@pytest.mark.parametrize("name", NAMES)
def test_every_name_and_uuid_given_exactly_is_found(session: Session, name: str) -> None:
    domain = session.domain(name)
    assert domain.name == name
    listing = list_domains(session, [domain.uuid], [])
    assert ([each["name"] for each in listing.domains], listing.missing) == ([name], ())


def test_a_uuid_means_its_domain_even_if_another_one_has_it_as_its_name(session: Session) -> None:
    wanted = session.domain("web1").uuid
    _define(session, wanted)
    assert session.domain(wanted).name == "web1"


def test_a_name_that_does_not_exist_is_an_error_everywhere(session: Session) -> None:
    unknown = str(uuid.uuid4())
    for name in ("[34]", unknown):
        with pytest.raises(Refused, match="There is no domain"):
            session.domain(name)
    assert set_capability(session, ["[34]", unknown], True, check_only=True) == ([], ["[34]", unknown])


def test_libvirt_is_the_test_driver(session: Session) -> None:
    assert session.api.getType() == "TEST" and libvirt.getVersion()
