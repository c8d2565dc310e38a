# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each command of the collection that opens a disk image names its format. What it opens then is seen in the integration tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_PLUGINS = Path(__file__).resolve().parents[3] / "plugins"
_PROGRAMS = ("qemu-img", "qemu-nbd", "qemu-storage-daemon", "qemu-io")

# All there are, with what each must name: a new one is judged, and added here.
TABLE = {
    ("qemu_img.py", "info"): {"-f"},
    ("qemu_img.py", "bitmap --remove"): {"-f"},
    ("qemu_img.py", "bitmap --add"): {"-f"},
    ("image_files.py", "measure"): {"-f", "-O"},
    ("image_files.py", "create"): {"-f"},
    ("image_files.py", "convert"): {"-f", "-O"},
    ("image_files.py", "compare"): {"-f", "-F"},
    ("image_files.py", "amend"): {"-f"},
    ("image_files.py", "check"): {"-f"},
    ("offline_export.py", "--pidfile"): set(),  # its nodes name their drivers, as JSON
}


def commands() -> Iterator[tuple[str, str, set[str]]]:
    """File, command and options of each list in the collection that begins with one of QEMU's programs."""
    for path in sorted(_PLUGINS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.List, ast.Tuple)) or not node.elts:
                continue
            words = [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            if words and isinstance(node.elts[0], ast.Constant) and words[0] in _PROGRAMS:
                yield path.name, " ".join(words[1:3]) if words[1] == "bitmap" else words[1], set(words)


def test_every_command_is_in_the_table() -> None:
    assert sorted((file, command) for file, command, _options in commands()) == sorted(TABLE)


def test_no_command_is_made_of_a_text() -> None:
    """A program that is named in another way than at the beginning of a list would not be seen here."""
    named = [
        (path.name, node.value)
        for path in _PLUGINS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in _PROGRAMS
    ]
    assert len(named) == len(TABLE)


@pytest.mark.parametrize("key", TABLE, ids=" ".join)
def test_a_command_names_its_formats(key: tuple[str, str]) -> None:
    (options,) = [options for file, command, options in commands() if (file, command) == key]
    assert TABLE[key] <= options
