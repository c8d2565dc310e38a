# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cbt_repository_info returns the identity of a repository without details, and then lists nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modules_run import Case, run_modules

from _cbt.repository.creation import open_or_create

DETAILS = {"sizes", "growth", "damage", "holds", "sessions"}


@pytest.fixture
def results(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Of a repository whose folder of packs cannot be listed, and of one that does not exist."""
    made = open_or_create(str(tmp_path / "repository"))
    assert made is not None
    (tmp_path / "repository/packs").write_text("not a folder")
    cases = {
        f"{name} {details}": Case("cbt_repository_info", {"repository": f"{{folder}}/{name}", "details": details})
        for name in ("repository", "none")
        for details in (True, False)
    }
    return run_modules(tmp_path, cases)


def test_without_details_nothing_is_listed(results: dict[str, dict[str, Any]]) -> None:
    assert results["repository True"]["failed"]
    found = results["repository False"]
    assert found["repository"].keys() == {"id", "format", "encrypted", "slots"} and not DETAILS & set(found)


def test_a_repository_that_does_not_exist_is_reported_in_the_same_words(results: dict[str, dict[str, Any]]) -> None:
    told = {results[f"none {details}"]["msg"] for details in (True, False)}
    assert len(told) == 1 and told.pop().startswith("There is no repository in")
