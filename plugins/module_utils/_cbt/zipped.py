# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads the engine faster from a zip archive, as which Ansible ships it to a host.

Most of a module's start is spent on compiling. Since Python 3.10, ``zipimport`` compiles each file twice: its finder
asks the loader for the name of the file, and the loader compiles the file to answer. The finder here knows the name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import typing as t
import zipimport
from importlib.machinery import ModuleSpec


class _Finder:
    """Finds the parts of one package in zip archives. The loader is Python's own."""

    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."

    def find_spec(self, name: str, path: t.Sequence[str] | None, _target: object = None) -> ModuleSpec | None:
        """Return how to load a module, or None to leave it to Python's finders."""
        for folder in (path or ()) if name.startswith(self._prefix) else ():
            with contextlib.suppress(zipimport.ZipImportError):
                loader = zipimport.zipimporter(folder)
                below = f"{folder}/{name.rpartition('.')[2]}"
                if loader.is_package(name):
                    return importlib.util.spec_from_file_location(
                        name, f"{below}/__init__.py", loader=loader, submodule_search_locations=[below]
                    )
                return importlib.util.spec_from_file_location(name, f"{below}.py", loader=loader)
        return None


def compile_once(package: str, loader: object) -> None:
    """Compile each file of ``package`` only once, if its ``loader`` reads a zip archive."""
    if isinstance(loader, zipimport.zipimporter) and sys.version_info >= (3, 10):
        sys.meta_path.insert(0, _Finder(package))
