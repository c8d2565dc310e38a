# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of libvirt's test driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from _cbt.hypervisor.connection import Session, connect

BARE = "<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os></domain>"


@contextlib.contextmanager
def empty_host() -> Iterator[Session]:
    """A session with a host that has no domains."""
    with connect("test:///default") as opened:
        for each in opened.api.listAllDomains():
            each.destroy()
            each.undefine()
        yield opened
