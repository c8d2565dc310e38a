# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the engine as one file that Python runs, without Ansible.

A server outlives the task that starts it, and Ansible deletes the task's code.
"""

from __future__ import annotations

import os
import sys
import typing as t
import zipfile
import zipimport

_ENTRY = """from {engine}.{module} import main

main()
"""
# The earliest date of a zip archive. All files have it, so equal engines are equal archives.
_OLDEST = (1980, 1, 1, 0, 0, 0)


def write(file: t.IO[bytes], module: str) -> None:
    """Write all files of the engine that are there. ``module`` has the function ``main`` that is run.

    In a task, only the files that its module imports are there.
    """
    engine = __package__.rpartition(".")[2]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, code in sorted(_sources()):
            archive.writestr(_entry(f"{engine}/{name}"), code)
        archive.writestr(_entry("__main__.py"), _ENTRY.format(engine=engine, module=module))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _OLDEST)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _sources() -> t.Iterator[tuple[str, bytes]]:
    """Yield the names below the engine, and the content, of its files: in a folder, or in the archive of a task."""
    package = sys.modules[__package__]
    (root,) = package.__path__
    loader = package.__loader__
    if isinstance(loader, zipimport.zipimporter):
        below = f"{os.path.relpath(root, loader.archive)}/"
        with zipfile.ZipFile(loader.archive) as archive:
            for name in archive.namelist():
                if name.startswith(below) and name.endswith(".py"):
                    yield name[len(below) :], archive.read(name)
        return
    for folder, _folders, files in os.walk(root):
        for each in files:
            if each.endswith(".py"):
                path = os.path.join(folder, each)
                with open(path, "rb") as file:
                    yield os.path.relpath(path, root), file.read()
