# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root file systems for nodes: another Debian release, and what the machine's own one lacks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.cache import alone, cache_folder, publish, scratch, unpack_packages
from lab.errors import LabError
from lab.process import run_tool

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PACKAGES = (
    "iproute2",
    "libnbd-bin",
    "libvirt-clients",
    "libvirt-daemon-system",
    "openssh-server",
    "python3-libnbd",
    "python3-libvirt",
    "python3-lz4",
    "qemu-system-x86",
    "qemu-utils",
)
_SSHD_PACKAGES = ("libwrap0", "openssh-server", "openssh-sftp-server")


def trixie_tree() -> Path:
    """A Debian 13 root file system (libvirt 11, QEMU 10); made first when it is not there.

    Takes 40 s and 410 MB. Nodes put an overlay on it, so it stays as it was made.
    """
    return _debian_tree("trixie")


def bare_tree() -> Path:
    """A root file system of this machine's release with nothing but apt and Python: a host that was not prepared."""
    cache = cache_folder()
    tree = cache / "bare"
    with alone(cache, "bare"):
        if not tree.exists():
            _make_tree(_release(), tree, ("ca-certificates", "python3-apt"))
    return tree


def sshd_files() -> Path:
    """A tree that holds nothing but sshd of this machine's release, to be copied over its root.

    Installing the package instead would start a server where an init system runs.
    """
    cache = cache_folder()
    files = cache / "sshd"
    if not files.exists():
        with scratch(cache) as folder:
            tree = unpack_packages(list(_SSHD_PACKAGES), folder)
            # Only what a program needs: the rest is settings, units and texts.
            for other in (*tree.iterdir(), tree / "usr/share"):
                if other.name != "usr":
                    shutil.rmtree(other)
            publish(tree, files)
    return files


def _debian_tree(release: str) -> Path:
    if shutil.which("mmdebstrap") is None:
        raise LabError("mmdebstrap is missing: install mmdebstrap")
    cache = cache_folder()
    tree = cache / release
    # Beside the tree, which shall hold nothing but Debian: what it was made of.
    recipe = cache / f"{release}.packages"
    with alone(cache, release):
        if not tree.exists() or not recipe.exists() or recipe.read_text().split() != list(_PACKAGES):
            _make_tree(release, tree, _PACKAGES)
            recipe.write_text("".join(f"{name}\n" for name in _PACKAGES))
    return tree


def _mirror() -> str:
    """The archive that this machine's own packages come from."""
    places = run_tool(["apt-get", "indextargets", "--format", "$(REPO_URI)"]).split()
    return next(place for place in places if "security" not in place)


def _release() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("VERSION_CODENAME="))


def _make_tree(release: str, tree: Path, packages: Sequence[str]) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    with scratch(tree.parent) as folder:
        folder.chmod(0o755)  # apt works as its own user
        command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(packages)}"]
        command += ['--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"']
        run_tool([*command, f"--keyring={_KEYRING}", release, folder / "tree", _mirror()])
        publish(folder / "tree", tree)
