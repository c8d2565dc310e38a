# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is exported, where, and what is refused by name."""

from __future__ import annotations

import dataclasses
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from samples import point, record

from _cbt.errors import Refused
from _cbt.hypervisor.domain_xml.disks import Selection
from _cbt.operations.export import exports
from _cbt.operations.export.plan import (
    LONGEST_SOCKET,
    Address,
    ExportPlan,
    ExportRequest,
    Folders,
    TcpAddress,
    UnixAddress,
    check_same,
    default_name,
    make_plan,
)

POINT = point(1, (record("vda", 10 << 20), record("vdb", 20 << 20)))
UNIX = UnixAddress("/run/sockets", 0, 0, 0o600)


def plan(address: Address = UNIX, **fields: Any) -> ExportPlan:
    return make_plan(POINT, "ab" * 16, "/backup", ExportRequest("web1", address, **fields))


def test_all_disks_are_exported_or_those_selected() -> None:
    assert plan().disks == {"vda": 10 << 20, "vdb": 20 << 20}
    assert plan(selection=Selection(("vdb",))).disks == {"vdb": 20 << 20}
    assert plan(selection=Selection(None, ("vdb",))).disks == {"vda": 10 << 20}
    with pytest.raises(Refused, match="no disk vdc"):
        plan(selection=Selection(("vdc",)))
    with pytest.raises(Refused, match="no disk left"):
        plan(selection=Selection(None, ("vda", "vdb")))


def test_the_repository_is_the_one_that_is_opened_also_for_a_copied_point() -> None:
    assert POINT.repository != plan().repository == "ab" * 16


def test_a_uri_leads_to_the_disk() -> None:
    made = urlsplit(plan(UnixAddress("/run/a folder & more", 0, 0, 0o600), name="n").uri("vda"))
    assert (made.scheme, made.path) == ("nbd+unix", "/vda")
    assert parse_qs(made.query) == {"socket": ["/run/a folder & more/n.sock"]}
    assert plan(TcpAddress("10.0.0.1", 10809, None)).uri("vda") == "nbd://10.0.0.1:10809/vda"
    assert plan(TcpAddress("::1", 10809, "/etc/pki/qemu")).uri("vda") == "nbds://[::1]:10809/vda"


@pytest.mark.parametrize("spare", [0, 1])
def test_the_path_of_a_socket_has_a_limit(spare: int) -> None:
    folder = "/" + "ü" * 20 + "x" * (LONGEST_SOCKET - 41 - len("/n.sock") + spare)
    if not spare:
        assert plan(UnixAddress(folder, 0, 0, 0o600), name="n").socket == f"{folder}/n.sock"
        return
    with pytest.raises(Refused, match=re.escape(f"{folder}/n.sock: its path has 108 bytes")):
        plan(UnixAddress(folder, 0, 0, 0o600), name="n")


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("web1", "web1"),
        ("a b/ü:c", "a-b-c"),
        ("../../etc", "etc"),
        ("---", POINT.uuid),
        ("ü", POINT.uuid),
        ("_x", "x"),
        ("x" * 255, "x" * 50),
    ],
)
def test_the_default_name_is_one(domain: str, name: str) -> None:
    found = dataclasses.replace(POINT, domain=domain)
    made = default_name(found)
    assert made == f"{name}-{POINT.id}"
    exported = make_plan(
        found, "ab" * 16, "/backup", ExportRequest(domain, UnixAddress("/run/kvm-cbt-exports", 0, 0, 0))
    )
    assert ExportRequest("web1", UNIX, name=exported.name).name == made, "it can be given as well"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "_a", "a\n", "a b", "ü", "x" * 101])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Refused, match="cannot be the name"):
        ExportRequest("web1", UNIX, name=name)


@pytest.mark.parametrize(
    ("address", "folders", "why"),
    [
        (UnixAddress("sockets", 0, 0, 0o600), Folders(), "socket_dir is sockets"),
        (TcpAddress("::1", 0, None), Folders(), "port is 0"),
        (TcpAddress("::1", 65536, None), Folders(), "port is 65536"),
        (UNIX, Folders(overlay="here"), "overlay_dir is here"),
        (UNIX, Folders(cache="here", cache_size=1 << 30), "cache_dir is here"),
        (UNIX, Folders(cache="/var/cache", cache_size=(64 << 20) - 1), "cache_size is 67108863"),
    ],
)
def test_values_out_of_range_are_refused(address: Address, folders: Folders, why: str) -> None:
    with pytest.raises(Refused, match=why):
        plan(address, folders=folders)


@pytest.mark.parametrize("address", [UNIX, TcpAddress("::1", 10809, None), TcpAddress("::1", 10809, "/pki")])
@pytest.mark.parametrize("folders", [Folders(), Folders("/var/tmp", "/var/cache", 1 << 30)])
def test_a_plan_is_kept_as_it_is(address: Address, folders: Folders) -> None:
    made = plan(address, folders=folders)
    assert exports.plan_of(exports.as_data(made)) == made


OTHERS = {
    "disks": {"selection": Selection(("vda",))},
    "address": {"address": TcpAddress("::1", 10809, None)},
    "folders": {"folders": Folders("/var/tmp")},
}


@pytest.mark.parametrize(("field", "fields"), OTHERS.items(), ids=OTHERS)
def test_an_export_with_other_options_is_not_the_same(field: str, fields: dict[str, Any]) -> None:
    check_same(plan(), plan())
    with pytest.raises(Refused, match=f"differs in {field}. "):
        check_same(plan(), plan(**fields))
