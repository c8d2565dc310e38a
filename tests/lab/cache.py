# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What takes long to make is kept in a cache folder, across test runs and shared by them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError
from lab.process import run_tool

CACHE_VARIABLE = "KVM_CBT_LAB_CACHE"
DEFAULT_CACHE = "/var/cache/kvm-cbt-lab"


def cache_folder() -> Path:
    """The cache; made when it is not there."""
    cache = Path(os.environ.get(CACHE_VARIABLE, DEFAULT_CACHE))
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A folder beside the final place, so that a result appears there at once or not at all."""
    with tempfile.TemporaryDirectory(prefix="making-", dir=parent) as name:
        yield Path(name)


def publish(made: Path, place: Path) -> None:
    """Move what was made in a scratch folder to its place, unless another lab user was faster."""
    try:
        made.rename(place)
    except OSError:
        if not place.exists():
            raise


@contextmanager
def alone(cache: Path, name: str) -> Iterator[None]:
    """Only one lab user at a time makes `name`: worth waiting for what takes a minute of all cores."""
    with (cache / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unpack_packages(names: list[str], folder: Path) -> Path:
    """Download Debian packages of this release and unpack them to `folder`/tree, without installing them."""
    # apt fetches as its own user.
    folder.chmod(0o755)
    shutil.chown(folder, "_apt")
    run_tool(["apt-get", "download", "-q", *names], cwd=folder)
    for package in folder.glob("*.deb"):
        run_tool(["dpkg", "-x", package, folder / "tree"])
    return folder / "tree"


def current_package(meta_package: str, pattern: str) -> str:
    """The package matching `pattern` on which a meta package depends now."""
    depends = run_tool(["apt-cache", "depends", "--important", meta_package])
    found = re.search(rf"Depends: ({pattern})", depends)
    if found is None:
        raise LabError(f"apt knows no {meta_package}: run apt-get update")
    return found[1]
