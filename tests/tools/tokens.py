# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints the number of tokens of the engine by folder: its size, however its lines are broken.

    .venv/bin/python tests/tools/tokens.py [FOLDER]

Comments, docstrings, indentation and ends of lines do not count. The default of FOLDER is the engine of this checkout.
"""

from __future__ import annotations

import ast
import collections
import sys
import tokenize
from pathlib import Path

ENGINE = Path(__file__).resolve().parents[2] / "plugins" / "module_utils" / "_cbt"
_LAYOUT = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(source: str) -> set[tuple[int, int]]:
    """Where docstrings begin: line and column."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            found.add((node.body[0].lineno, node.body[0].col_offset))
    return found


def tokens_of(path: Path) -> int:
    """The tokens of a file."""
    spared = docstrings(path.read_text(encoding="utf-8"))
    with path.open("rb") as file:
        return sum(
            token.type not in _LAYOUT and token.start not in spared for token in tokenize.tokenize(file.readline)
        )


def main() -> None:
    """Print a row for each folder, and the sum."""
    top = Path(sys.argv[1]) if len(sys.argv) > 1 else ENGINE
    files: collections.Counter[str] = collections.Counter()
    tokens: collections.Counter[str] = collections.Counter()
    for path in sorted(top.rglob("*.py")):
        folder = str(path.parent.relative_to(top))
        files[folder] += 1
        tokens[folder] += tokens_of(path)
    for folder, count in sorted(tokens.items()):
        print(f"{count:8,}  {files[folder]:3} files  {folder}")
    print(f"{tokens.total():8,}  {files.total():3} files  all")


if __name__ == "__main__":
    main()
