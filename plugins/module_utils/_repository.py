# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens the repository that a module's options name."""

from __future__ import annotations

import functools
import importlib
import typing as t

from ._cbt.repository.creation import open_or_create
from ._cbt.repository.location import RepositoryLocation
from ._cbt.repository.memory.memory import Memory, Terms
from ._cbt.repository.repository import Repository, Watching, find_repository, open_repository
from ._cbt.repository.stores.s3_options import S3Options
from ._runtime import Module

__all__ = [
    "Repository",
    "compression",
    "existing_repository",
    "passphrase_of",
    "repository_at",
    "repository_if_any",
    "repository_location",
    "repository_or_none",
    "watching",
]


def passphrase_of(module: Module, which: str = "") -> str | None:
    """Return the passphrase, or what its file contains or its command prints. Ansible then masks it in results."""
    path, command = (module.params[f"{which}passphrase_{source}"] for source in ("file", "command"))
    if path is None and command is None:
        return t.cast("str | None", module.params[f"{which}passphrase"])
    from ._cbt.repository.crypto.passphrase import from_command, from_file  # only then: they load subprocess

    passphrase = from_file(path) if path is not None else from_command(command)
    module.no_log_values.add(passphrase)
    return passphrase


def repository_location(module: Module, which: str = "") -> RepositoryLocation:
    """Return the location in the options whose names begin with ``which``."""
    params = module.params
    options = S3Options(**(params[f"{which}s3"] or {}))
    return RepositoryLocation(params[f"{which}repository"], options, passphrase_of(module, which), module.control)


def compression(module: Module) -> str:
    """Return the compression in the options. By default lz4, or zlib with a warning if lz4 is not installed."""
    params = module.params
    if params["compression"] is not None:
        return str(params["compression"])
    try:
        importlib.import_module("lz4.block")
    except ImportError:
        if params["compression_level"] is None:
            module.warn(
                "Blocks are compressed with zlib, which is slower than lz4, because the Python module lz4 is not"
                " installed. Install python3-lz4 (in the RHEL family, it is in EPEL), or set compression: zlib."
            )
            return "zlib"
    return "lz4"


def watching(module: Module, which: str = "") -> Watching:
    """Return the memory that checks a repository against what this host knows of it.

    It keeps new knowledge, except in check mode.
    """
    option = f"{which}accept_repository"
    return functools.partial(Memory, terms=Terms(module.params[option], not module.check_mode, option, module.warn))


def repository_or_none(module: Module, which: str = "") -> Repository | None:
    """Return the module's repository, created if ``create_repository`` says so.

    Returns None in check mode if it would be created.
    """
    if module.params["create_repository"]:
        return open_or_create(repository_location(module, which), module.check_mode, watching(module, which))
    return existing_repository(module, which)


def repository_if_any(module: Module) -> Repository | None:
    """Return the module's repository; None if there is none yet."""
    return find_repository(repository_location(module), watching(module))


def existing_repository(module: Module, which: str = "") -> Repository:
    """Return the module's repository, which must exist."""
    return repository_at(module, repository_location(module, which), which)


def repository_at(module: Module, location: RepositoryLocation, which: str = "") -> Repository:
    """Return the repository at the location in the module's options, which must exist."""
    return open_repository(location, watching(module, which))
