# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Durations, restore points and constraints are the same in all modules and roles."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from modules_run import Case, run_modules
from tools.role_readmes import ROLES, spec_of

from _cbt.repository.creation import open_or_create

PLUGINS = ROLES.parent / "plugins"
OPTIONS = importlib.import_module("ansible_collections.kvm.cbt.plugins.module_utils._options")
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("cbt_*.py"))
_TIME = re.compile(r"(?:.*_)?(?:timeout|grace)")


def own_options(module: str) -> dict[str, Any]:
    """The options that a module documents itself."""
    tree = ast.parse((PLUGINS / "modules" / f"{module}.py").read_text())
    text = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DOCUMENTATION"
    )
    options: dict[str, Any] = yaml.safe_load(ast.literal_eval(text)).get("options", {})
    return options


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("24h", 86400),
        ("7d", 604800),
        (" 7 d\n", 604800),
        ("007", 7),
        ("999999999", 999999999),
    ],
)
def test_durations_are_seconds_or_numbers_with_a_unit(duration: str, expected: int) -> None:
    filters = importlib.import_module("ansible_collections.kvm.cbt.plugins.filter.fleet").FilterModule().filters()
    assert OPTIONS.seconds(duration) == filters["seconds"](duration) == expected


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "1.5h", "1h30m", "24 hours", "7D", "1w", "1e3", "\u0661", "9" * 10, "5m x", "none"]
)
def test_anything_else_is_not_a_duration(text: str) -> None:
    filters = importlib.import_module("ansible_collections.kvm.cbt.plugins.filter.fleet").FilterModule().filters()
    with pytest.raises(ValueError, match="is not a duration"):
        OPTIONS.seconds(text)
    with pytest.raises(AnsibleFilterError, match="is not a duration. Write a number of seconds"):
        filters["seconds"](text)


def test_every_option_that_is_a_time_span_is_read_as_a_duration() -> None:
    spans = {
        name: option for module in MODULES for name, option in own_options(module).items() if _TIME.fullmatch(name)
    }
    spans["lock_timeout"] = OPTIONS.LOCK["lock_timeout"]
    assert set(spans) <= OPTIONS.DURATIONS
    assert {"grace", "lock_timeout", "shutdown_timeout", "timeout"} <= set(spans)
    assert {option["type"] for option in spans.values()} == {"str"}
    assert all(OPTIONS.seconds(str(option["default"])) >= 0 for option in spans.values())


@pytest.mark.parametrize("role", sorted(ROLES.iterdir()), ids=lambda role: role.name)
def test_every_variable_of_a_role_that_is_a_time_span_is_a_duration(role: Path) -> None:
    for name, option in spec_of(role)["options"].items():
        if _TIME.fullmatch(name):
            assert option["type"] == "str", name
            assert OPTIONS.seconds(option["default"]) >= 0


def test_modules_read_durations_and_refuse_other_texts(tmp_path: Path) -> None:
    open_or_create(str(tmp_path / "repository"))
    here = {"repository": "{folder}/repository"}
    results = run_modules(
        tmp_path,
        {
            "good": Case("cbt_retention", {**here, "grace": "7d"}),
            "number": Case("cbt_retention", {**here, "grace": 3600}),
            "bad": Case("cbt_retention", {**here, "grace": "a week"}),
            "bad time to wait": Case("cbt_backup", {**here, "domain": "web1", "lock_timeout": "-1"}),
        },
    )
    assert [bool(results[name].get("failed")) for name in ("good", "number")] == [False, False]
    assert results["bad"]["msg"].startswith("grace: 'a week' is not a duration.")
    assert results["bad time to wait"]["msg"].startswith("lock_timeout: '-1' is not a duration.")


def test_an_option_for_restore_points_accepts_both_names() -> None:
    found = {}
    for module in MODULES:
        for name, option in own_options(module).items():
            names = {name, *option.get("aliases", ())}
            if names & {"restore_point", "restore_points"}:
                found[module] = names
    assert set(found) == {"cbt_backup_info", "cbt_copy", "cbt_export", "cbt_restore", "cbt_restore_point", "cbt_verify"}
    assert set(map(frozenset, found.values())) == {frozenset({"restore_point", "restore_points"})}
