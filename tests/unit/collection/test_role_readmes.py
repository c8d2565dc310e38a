# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Specification, defaults and README of every role agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tools.role_readmes import ROLES, readme, spec_of

EVERY = pytest.mark.parametrize("role", sorted(ROLES.iterdir()), ids=lambda role: role.name)


@EVERY
def test_defaults_are_those_of_the_specification(role: Path) -> None:
    specified = {name: option["default"] for name, option in spec_of(role)["options"].items() if "default" in option}
    assert yaml.safe_load((role / "defaults/main.yml").read_text()) == specified


@EVERY
def test_variables_begin_with_the_name_of_their_role(role: Path) -> None:
    assert [name for name in spec_of(role)["options"] if not name.startswith(f"{role.name}_")] == []


@EVERY
def test_the_readme_is_made_of_the_specification(role: Path) -> None:
    assert (role / "README.md").read_text() == readme(role), "run .venv/bin/python tests/tools/role_readmes.py"
