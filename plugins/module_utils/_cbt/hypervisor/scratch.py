# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates folders for scratch files of backup jobs, on this host and on others.

On another host the folder is a storage pool: libvirt reports the free space of pools, and creates and removes their
folders. The name of a folder identifies the domain. The name of a pool also identifies the host that reads, because no
other host can see whether the run lives.

A folder belongs to the user of this process, normally root, and QEMU's user cannot write to it: libvirt creates the
scratch files in it, as root. QEMU creates its socket itself, in a subfolder of its own. Root opens and creates no file
there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import stat
import tempfile
import typing as t

from ..errors import Refused
from ..runtime import own_folder
from ..trusted_files import FOLDER, opened, upwards
from . import free_space
from .connection import Domain, explained
from .domain import DomainFacts, require_files_here

SELINUX = "/sys/fs/selinux/enforce"  # exists while SELinux is active
FOR_QEMU = "qemu"  # subfolder of a run's folder for QEMU's socket; it belongs to QEMU's user
_DEEPEST = 4  # maximum depth of folders to remove; a run creates fewer
_PREFIX = "kvm-cbt-"
_MACHINE_ID = "/etc/machine-id"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_OF_CONTAINERS = ("/.dockerenv", "/run/.containerenv")
_LONGEST = 107  # maximum bytes in the path of a Unix socket
_RANDOM = 8  # characters that mkdtemp appends


@dataclasses.dataclass(frozen=True)
class Workspace:
    """The folders of one run. QEMU's user can write to neither.

    ``folder`` is on this host. ``scratch`` holds the scratch files on the hypervisor, and may be the same folder.
    ``watched`` is the directory that must not run out of space.
    """

    folder: str
    scratch: str
    watched: free_space.WatchedDirectory


def local_prefix(uuid: str) -> tuple[str, str]:
    """Return the prefixes of the names of a domain's scratch folders on this host.

    The first contains the name of the domain's AppArmor profile, so that a rule can open a folder to its own domain
    only. The short one is for deep parents, where the path of a socket would be too long. Earlier versions always used
    it.
    """
    return f"{_PREFIX}libvirt-{uuid}-", f"{_PREFIX}{uuid[:8]}-"


def remote_prefix(uuid: str) -> str:
    """Return the prefix of the names of a domain's pools on another host.

    Only runs that exclude each other by a lock on the domain have the same prefix.
    """
    return f"{_PREFIX}remote-libvirt-{uuid}-{reader()}-"


def reader() -> str:
    """Return what identifies this host on other hosts. Runs of one user exclude each other there by their locks."""
    return hashlib.sha256(_reader().encode()).hexdigest()[:8]


def _reader() -> str:
    """Return the id of this host, which does not depend on its name.

    Containers may have the same id and the same name. The id of a container is that of its folder of locks.
    """
    machine = ""
    with contextlib.suppress(OSError), open(_MACHINE_ID, encoding="ascii") as file:
        machine = file.read().strip()
    if machine and not any(map(os.path.exists, _OF_CONTAINERS)):
        return machine
    with own_folder() as (_path, handle), open(_BOOT_ID, encoding="ascii") as file:
        locks = os.fstat(handle)
        return f"{file.read()}/{locks.st_dev}/{locks.st_ino}"


def _fitting_prefix(uuid: str, parent: str) -> str:
    profile, short = local_prefix(uuid)
    example = os.path.join(parent, f"{profile}{'x' * _RANDOM}")
    return profile if _fits(example) else short


def _groups(owner: tuple[int, int]) -> t.Collection[int]:
    """Return the groups of QEMU's user."""
    try:
        user = pwd.getpwuid(owner[0])
        return {user.pw_gid, *os.getgrouplist(user.pw_name, owner[1])}
    except (KeyError, OSError):
        return {owner[1]}


def _own(parent: str, facts: DomainFacts) -> str:
    """Return the real path of ``parent``.

    Raises Refused if another user could replace a folder created there: libvirt creates files in it by name, as root.
    """
    groups = _groups(facts.owner) if facts.owner is not None else ()
    real = os.path.realpath(parent)
    for path, status in upwards(real):
        others = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid in groups)
        if status.st_uid not in (0, os.geteuid()) or (others and not status.st_mode & stat.S_ISVTX):
            raise Refused(
                f"Cannot use {parent} for scratch files: another user could replace files in {path}. Choose another"
                " folder with scratch_dir, or make root the owner of that one, and the only user who can write to it."
            )
    return real


@contextlib.contextmanager
def _locked_folder(facts: DomainFacts, parent: str) -> t.Iterator[tuple[str, int]]:
    """Yield the path and a handle of a new folder of this run. Its lock (flock) shows that the run lives."""
    try:
        own = _own(parent, facts)
        path = tempfile.mkdtemp(prefix=_fitting_prefix(facts.uuid, own), dir=own)
        handle = os.open(path, FOLDER)
    except OSError as error:
        raise Refused(
            f"Cannot create a scratch folder in {parent}: {error.strerror}. Choose another with scratch_dir."
        ) from error
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise Refused(
                f"Cannot use {path} for scratch files: another user replaced the one that was just created. Choose"
                " another with scratch_dir."
            )
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path, handle
    finally:
        remove_folder(path)
        os.close(handle)


def remove_folder(path: str, above: int | None = None, depth: int = _DEEPEST) -> None:
    """Remove a folder and its content, as far as possible. Ignores OSError.

    Follows no link and does not block, even if other users change the folder at the same time. ``path`` may be relative
    to the handle ``above``. The folders below it are removed down to ``depth``.
    """
    with contextlib.suppress(OSError):
        os.unlink(path, dir_fd=above)
        return
    if not depth:
        return
    with contextlib.suppress(OSError):
        with opened(path, FOLDER, above) as handle:
            for each in os.listdir(handle):
                remove_folder(each, handle, depth - 1)
        os.rmdir(path, dir_fd=above)


def socket_of_qemu(folder: str) -> str:
    """Return the path of QEMU's socket for the run with this folder."""
    return os.path.join(folder, FOR_QEMU, "nbd.sock")


def _fits(folder: str) -> bool:
    return len(os.fsencode(socket_of_qemu(folder))) <= _LONGEST


def _label(*folders: str) -> None:
    # A folder gets the label of its parent. SELinux lets QEMU create a socket only in a folder with the label that the
    # host's policy has for its path.
    if os.path.exists(SELINUX) and shutil.which("restorecon"):
        from .. import programs  # loaded only with SELinux

        programs.run(["restorecon", *folders])


def _let_qemu_in(folder: int, owner: tuple[int, int] | None) -> None:
    """Create the folder for QEMU's socket, and let QEMU reach it."""
    os.mkdir(FOR_QEMU, 0o700, dir_fd=folder)
    if owner is not None and os.geteuid() == 0:
        os.chown(FOR_QEMU, *owner, dir_fd=folder, follow_symlinks=False)
        os.fchmod(folder, 0o711)


@contextlib.contextmanager
def scratch_folder(facts: DomainFacts, parent: str) -> t.Iterator[str]:
    """Yield a new folder for the socket and scratch files of one job.

    Only this user can write to it or list it. Only QEMU's user can enter the subfolder of the socket. Raises Refused if
    the folder cannot be created, or if the domain is on another host.
    """
    require_files_here(facts, f"share files with QEMU in {parent}")
    with _locked_folder(facts, parent) as (folder, handle):
        _let_qemu_in(handle, facts.owner)
        _label(folder, os.path.join(folder, FOR_QEMU))
        if not _fits(folder):
            raise Refused(
                f"The scratch directory {parent} is too long a path for a Unix socket. Choose a shorter one with"
                " scratch_dir."
            )
        yield folder


@contextlib.contextmanager
def workspace(domain: Domain, facts: DomainFacts, parent: str) -> t.Iterator[Workspace]:
    """Yield the folders of one run; ``parent`` is a directory of the hypervisor.

    Raises Refused or HypervisorError.
    """
    if facts.host is None:
        with scratch_folder(facts, parent) as folder:
            watched = free_space.WatchedDirectory(folder, "the scratch directory", "scratch_dir", 0.02)
            yield Workspace(folder, folder, watched)
        return
    from . import storage_pools  # loaded only for a domain of another host

    session, name = domain.session, f"{remote_prefix(domain.uuid)}{secrets.token_hex(4)}"
    with _locked_folder(facts, tempfile.gettempdir()) as (folder, _handle):
        try:
            path = os.path.join(parent, name)
            advice = "libvirt's storage driver must be there. Choose another folder with scratch_dir."
            with explained(f"create the scratch folder {path} on {facts.host}", advice):
                storage_pools.make(session, name, path)
            watched = free_space.WatchedDirectory(
                path,
                f"the scratch directory on {facts.host},",
                "scratch_dir",
                0.1,
                lambda _path: storage_pools.measure(session, name),
            )
            yield Workspace(folder, path, watched)
        finally:
            storage_pools.remove(session, name)
