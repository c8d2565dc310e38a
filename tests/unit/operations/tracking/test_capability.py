# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The switch for incremental backup in a domain's definition."""

from __future__ import annotations

from _cbt.operations.tracking.capability import switched

_PLAIN = "<domain><name>web1</name></domain>"
_OTHER = (
    "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>web1</name>"
    "<qemu:capabilities><qemu:add capability='other'/><qemu:del capability='more'/></qemu:capabilities></domain>"
)


def test_it_is_added_once_and_removed_without_a_trace() -> None:
    on = switched(_PLAIN, True)
    assert on is not None and 'qemu:add capability="incremental-backup"' in on
    assert switched(on, True) is None
    assert switched(on, False) == _PLAIN
    assert switched(_PLAIN, False) is None


def test_capabilities_of_others_are_left_alone() -> None:
    on = switched(_OTHER, True)
    assert on is not None
    off = switched(on, False)
    for xml in (on, off):
        assert xml is not None and 'capability="other"' in xml and 'capability="more"' in xml
