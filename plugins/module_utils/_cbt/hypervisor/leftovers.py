# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run that was killed left on the hypervisor. Private to the collection."""

from __future__ import annotations

import fcntl
import os
import shutil
import typing as t
from xml.etree import ElementTree

from . import job
from .connection import Domain, libvirt


def _abandoned(folder: str) -> bool:
    """True if no living run holds the lock of a scratch folder, or if the folder is gone."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def job_folder(domain: Domain) -> t.Optional[str]:
    """The scratch folder of the domain's backup job if the job is one of ours, else None."""
    try:
        server = ElementTree.fromstring(domain.api.backupGetXMLDesc()).find("server")
    except libvirt.libvirtError:
        return None
    socket = server.get("socket") if server is not None else None
    if socket is None:
        return None
    folder = os.path.dirname(socket)
    return folder if os.path.basename(folder).startswith(job.SCRATCH_PREFIX) else None


def is_leftover(domain: Domain) -> bool:
    """True if the domain's backup job was begun by a run of ours that no longer lives."""
    folder = job_folder(domain)
    return folder is not None and _abandoned(folder)


def clear(domain: Domain, scratch_dir: str) -> t.List[str]:
    """End a leftover job and remove abandoned scratch folders of this domain; returns what was done, for a person."""
    done = []
    folder = job_folder(domain)
    if folder is not None and _abandoned(folder):
        job.end(domain)
        shutil.rmtree(folder, ignore_errors=True)
        done.append(f"A backup job that a killed run had left on {domain.name} was ended.")
    prefix = f"{job.SCRATCH_PREFIX}{domain.uuid[:8]}-"
    names = os.listdir(scratch_dir) if os.path.isdir(scratch_dir) else []
    for name in names:
        path = os.path.join(scratch_dir, name)
        if name.startswith(prefix) and os.path.isdir(path) and _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
            done.append(f"The scratch folder {path} that a killed run had left was removed.")
    return done
