# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds and removes the leftovers of killed runs on the hypervisor."""

from __future__ import annotations

import fcntl
import os
import tempfile
from xml.etree import ElementTree

from ..trusted_files import FOLDER, opened
from . import backup_job, scratch
from .connection import Domain, explained, libvirt


def _abandoned(folder: str) -> bool:
    """Whether no living run holds the lock of a scratch folder, or the folder is gone."""
    try:
        with opened(folder, FOLDER) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True


def left_folder(domain: Domain) -> str | None:
    """Return the folder of the scratch files of the domain's backup job if that is a leftover, else None.

    A leftover was begun by a run of this host that no longer lives. The caller must hold the domain's lock.
    """
    try:
        scratch_file = ElementTree.fromstring(domain.api.backupGetXMLDesc()).find("./disks/disk/scratch")
    except libvirt.libvirtError:
        return None
    path = scratch_file.get("file") if scratch_file is not None else None
    if path is None:
        return None
    folder = os.path.dirname(path)
    remote = domain.session.remote_host is not None
    prefixes = (scratch.remote_prefix if remote else scratch.local_prefix)(domain.uuid)
    # On another host, the caller's lock on the domain excludes other runs of this user.
    left = os.path.basename(folder).startswith(prefixes) and (remote or _abandoned(folder))
    return folder if left else None


def end_paused_start(domain: Domain, check_only: bool = False) -> bool | None:
    """Shut the domain off if a killed run had started it with paused virtual CPUs, unless ``check_only``.

    Return whether it had; None if a run of another user or host had, which may still work. Raises HypervisorError.
    The caller must hold the domain's lock.
    """
    with explained(f"read the state of {domain.name}"):
        if domain.api.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
            return False
        from . import paused_start  # loaded only for a domain that is paused

        left = paused_start.left(domain)
    if left and not check_only:
        paused_start.shut_off(domain)
    return left


def clear(domain: Domain, scratch_dir: str) -> list[str]:
    """End a leftover job and remove abandoned scratch folders of this domain.

    Returns messages for the user. Raises HypervisorError. The caller must hold the domain's lock.
    """
    done = []
    folder = left_folder(domain)
    if folder is not None:
        backup_job.end(domain)
        if domain.session.remote_host is None:
            scratch.remove_folder(folder)
        done.append(f"A backup job that a killed run had left on {domain.name} was ended.")
    if domain.session.remote_host is not None:
        removed = _clear_pools(domain) + _clear_folders(domain, tempfile.gettempdir())
    else:
        removed = _clear_folders(domain, scratch_dir)
    return done + [f"The scratch folder {path} that a killed run had left was removed." for path in removed]


def _clear_pools(domain: Domain) -> list[str]:
    from . import storage_pools  # loaded only for a domain of another host

    prefixes = scratch.remote_prefix(domain.uuid)
    found = [name for name in storage_pools.names(domain.session) if name.startswith(prefixes)]
    for name in found:
        storage_pools.remove(domain.session, name)
    return found


def _clear_folders(domain: Domain, scratch_dir: str) -> list[str]:
    removed = []
    for name in os.listdir(scratch_dir) if os.path.isdir(scratch_dir) else ():
        path = os.path.join(scratch_dir, name)
        if name.startswith(scratch.local_prefix(domain.uuid)) and os.path.isdir(path) and _abandoned(path):
            scratch.remove_folder(path)
            if not os.path.lexists(path):
                removed.append(path)
    return removed
