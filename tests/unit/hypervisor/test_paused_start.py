# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain is taken for one that a killed run left only if this user started it and its guest never ran."""

from __future__ import annotations

import dataclasses
import types
import typing as t

import pytest

from _cbt.hypervisor import paused_start

PAUSED, USER, FROM_SNAPSHOT = 3, 1, 7
NO_METADATA = 80


class LibvirtError(Exception):
    """An error of libvirt, which need not be installed for these tests."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def get_error_code(self) -> int:
        return self.code


@dataclasses.dataclass
class Guest:
    """A domain as libvirt and QEMU show it."""

    by: str | None = "this-0"
    io: tuple[int, int, int, int, int] = (0, 0, 0, 0, -1)
    why: int = USER
    status: str = "prelaunch"
    lost: bool = False
    name = "web1"

    @property
    def api(self) -> Guest:
        return self

    def metadata(self, *_arguments: t.Any) -> str:
        if self.lost or self.by is None:
            raise LibvirtError(38 if self.lost else NO_METADATA)
        return f"<run user='{self.by}'/>"

    def blockStats(self, _path: str) -> tuple[int, ...]:  # noqa: N802  # as libvirt has it
        return self.io

    def state(self) -> list[int]:
        return [PAUSED, self.why]


@pytest.fixture(autouse=True)
def _this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"VIR_DOMAIN_METADATA_ELEMENT": 2, "VIR_DOMAIN_AFFECT_LIVE": 1, "VIR_ERR_NO_DOMAIN_METADATA": NO_METADATA}
    states = {"VIR_DOMAIN_PAUSED": PAUSED, "VIR_DOMAIN_PAUSED_USER": USER}
    monkeypatch.setattr(paused_start, "libvirt", types.SimpleNamespace(libvirtError=LibvirtError, **names, **states))
    monkeypatch.setattr(paused_start, "monitor", lambda domain, _command: {"status": domain.status})
    monkeypatch.setattr(paused_start, "_this_user", lambda: "this-0")


ROWS = {
    "never ran": (Guest(), True),
    "started by a user": (Guest(by=None), False),
    "started by another user": (Guest(by="this-1000"), None),
    "started on another host, and resumed": (Guest(by="other-0", status="paused"), False),
    "resumed and paused": (Guest(status="paused"), False),
    "resumed, paused and reset": (Guest(io=(1, 512, 0, 0, -1)), False),
    "reverted to a snapshot": (Guest(why=FROM_SNAPSHOT), False),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_domain_was_left_started_if_this_user_started_it_and_its_guest_never_ran(row: str) -> None:
    guest, expected = ROWS[row]
    assert paused_start.left(guest) is expected  # type: ignore[arg-type]


def test_an_error_does_not_count_as_a_missing_mark() -> None:
    with pytest.raises(LibvirtError):
        paused_start.left(Guest(lost=True))  # type: ignore[arg-type]
