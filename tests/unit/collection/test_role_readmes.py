# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Specification, defaults and README of every role agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools.role_readmes import ROLES, defaults_of, metadata, readme, refers, spec_of

EVERY = pytest.mark.parametrize("role", sorted(ROLES.iterdir()), ids=lambda role: role.name)


@EVERY
def test_defaults_are_those_of_the_specification(role: Path) -> None:
    specified = {name: option["default"] for name, option in spec_of(role)["options"].items() if "default" in option}
    assert {name: value for name, value in defaults_of(role).items() if not refers(value)} == specified


@EVERY
def test_a_default_that_refers_to_a_variable_is_described_and_not_evaluated_with_the_arguments(role: Path) -> None:
    for name, value in defaults_of(role).items():
        option = spec_of(role)["options"][name]
        assert "{{" not in str(option), f"an undefined variable would fail the validation of all arguments: {name}"
        if refers(value) and name != "prepare_features":
            (variable,) = re.findall(r"cbt_\w+", value)
            assert f"The default is C({variable})" in " ".join(option["description"]), name


@EVERY
def test_each_role_has_metadata_for_galaxy(role: Path) -> None:
    assert (role / "meta/main.yml").read_text() == metadata(role), "run .venv/bin/python tests/tools/role_readmes.py"


@EVERY
def test_variables_begin_with_the_name_of_their_role(role: Path) -> None:
    assert [name for name in spec_of(role)["options"] if not name.startswith(f"{role.name}_")] == []


@EVERY
def test_the_readme_is_made_of_the_specification(role: Path) -> None:
    assert (role / "README.md").read_text() == readme(role), "run .venv/bin/python tests/tools/role_readmes.py"


def test_every_shared_variable_is_in_the_table_of_the_manual() -> None:
    sources = [*ROLES.glob("*/defaults/*.yml"), *ROLES.glob("*/tasks/*.yml"), *(ROLES.parent / "playbooks").iterdir()]
    used = {name for path in sources for name in re.findall(r"(?<!kvm\.cbt\.)\bcbt_\w+", path.read_text())}
    table = re.findall(r"^\| `(cbt_\w+)` \|", (ROLES.parent / "docs/variables.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(used)
