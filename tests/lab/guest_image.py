# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel and initramfs of lab guests, from Debian packages and kept in a cache."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.cache import cache_folder, current_package, publish, scratch, unpack_packages
from lab.errors import LabError
from lab.process import run_tool

_META_PACKAGE = "linux-image-cloud-amd64"
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
_BUSYBOX = Path("/bin/busybox")
_AGENT = Path("/usr/sbin/qemu-ga")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class GuestImage:
    """What a direct-booted guest starts from."""

    kernel: Path
    initramfs: Path


def guest_image() -> GuestImage:
    """Kernel and initramfs from the cache; made first when they are not there."""
    for tool, package in ((_BUSYBOX, "busybox-static"), (_AGENT, "qemu-guest-agent")):
        if not tool.exists():
            raise LabError(f"{tool} is missing: install {package}")
    cache = cache_folder()
    tree = cache / "kernel"
    if not tree.exists():
        _download_kernel(tree)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    initramfs = cache / f"initramfs-{_fingerprint(kernel)}.cpio"
    if not initramfs.exists():
        _pack_initramfs(tree, initramfs)
    return GuestImage(kernel, initramfs)


def _download_kernel(tree: Path) -> None:
    """Unpack the package of the current cloud kernel, which is not installed, to `tree`."""
    name = current_package(_META_PACKAGE, r"linux-image-\S+")
    with scratch(tree.parent) as folder:
        publish(unpack_packages([name], folder), tree)


def _pack_initramfs(tree: Path, initramfs: Path) -> None:
    with scratch(initramfs.parent) as folder:
        root = folder / "root"
        _copy_program(_HERE / "guest-init.sh", root / "init")
        _copy_program(_HERE / "guest-shutdown.sh", root / "sbin/shutdown")
        _copy_program(_BUSYBOX, root / "bin/busybox")
        for file in (_AGENT, *_libraries(_AGENT)):
            _copy_program(file, root / file.relative_to("/"))
        modules = _in_load_order(tree)
        for module in modules:
            _copy_program(module, root / "modules" / module.name)
        (root / "modules/order").write_text("".join(f"{module.name}\n" for module in modules))
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        packed = folder / "packed"
        # Not compressed: under emulation, unpacking takes longer than loading.
        subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-F", packed],
            cwd=root,
            input=names.encode(),
            check=True,
        )
        publish(packed, initramfs)


def _copy_program(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)
    destination.chmod(0o755)


def _libraries(program: Path) -> list[Path]:
    """The shared libraries a program loads, and the loader."""
    return [Path(name) for name in re.findall(r"(/\S+) \(0x", run_tool(["ldd", program]))]


def _in_load_order(tree: Path) -> list[Path]:
    """The wanted modules after those they need; what is built into the kernel is left out.

    Dependencies are read from the modules: modules.dep is made only by an installation.
    """
    files = {path.stem.replace("-", "_"): path for path in tree.glob("lib/modules/*/kernel/**/*.ko")}
    (builtin_list,) = tree.glob("lib/modules/*/modules.builtin")
    builtin = {Path(line).stem.replace("-", "_") for line in builtin_list.read_text().split()}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in files:
            raise LabError(f"the kernel has no module {name}")
        needed = re.search(rb"\0depends=([^\0]*)", files[name].read_bytes())
        for other in needed[1].decode().split(",") if needed and needed[1] else []:
            add(other.replace("-", "_"))
        order[name] = files[name]

    for wanted in _MODULES:
        add(wanted)
    return list(order.values())


def _fingerprint(kernel: Path) -> str:
    """Changes with everything that goes into the initramfs."""
    digest = hashlib.sha256(kernel.name.encode())
    for file in (*sorted(_HERE.glob("guest*")), _BUSYBOX, _AGENT):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
