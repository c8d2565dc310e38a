# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains that tests restore."""

from __future__ import annotations

import contextlib
import typing as t
import uuid
from pathlib import Path

import libvirt
import pytest
from lab.base import UNDEFINE_ALL

from _cbt.errors import CbtError
from _cbt.hypervisor.connection import Session
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.repository.repository import Repository


def new_name() -> str:
    """A name no domain has."""
    return f"lab-{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def removed(session: Session, *names: str) -> t.Iterator[None]:
    """Have domains that a test restores removed at the end."""
    try:
        yield
    finally:
        for name in names:
            with contextlib.suppress(libvirt.libvirtError):
                handle = session.api.lookupByName(name)
                with contextlib.suppress(libvirt.libvirtError):
                    handle.destroy()
                handle.undefineFlags(UNDEFINE_ALL | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
            for log in Path("/var/log/libvirt/qemu").glob(f"{name}.log*"):
                log.unlink()


def refused(repository: Repository, session: Session, request: RestoreRequest, match: str) -> None:
    """Prove that a restore is refused in these words, in check mode as well."""
    for check_only in (True, False):
        with pytest.raises(CbtError, match=match):
            restore(repository, request, session, check_only=check_only)
