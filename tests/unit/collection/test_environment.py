# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that are not given are taken from the environment; of several sources of a passphrase, one counts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from modules_run import Case, run_modules

from _cbt.repository.creation import open_or_create
from _cbt.repository.crypto import key_slots
from _cbt.repository.location import RepositoryLocation

SECRET, OTHER = "correct horse", "battery staple"
HERE = {"CBT_REPOSITORY": "{folder}/repository"}
GIVEN = {"repository": "{folder}/repository"}
FILE, COMMAND = "{folder}/passphrase", "cat '{folder}/passphrase'"
RIGHT = {"CBT_PASSPHRASE": SECRET}


def info(options: dict[str, Any], environment: dict[str, str]) -> Case:
    """Read the repository, which is encrypted with SECRET."""
    return Case("cbt_repository_info", options, environment=environment)


READ = {
    "all by options": info({**GIVEN, "passphrase": SECRET}, {}),
    "all by the environment": info({}, {**HERE, **RIGHT}),
    "a file of the environment": info({}, {**HERE, "CBT_PASSPHRASE_FILE": FILE}),
    "the passphrase before the file": info(GIVEN, {**RIGHT, "CBT_PASSPHRASE_FILE": "/none"}),
    "an empty variable counts as unset": info(GIVEN, {"CBT_PASSPHRASE": "", "CBT_PASSPHRASE_FILE": FILE}),
    "a repository before the environment": info({**GIVEN, "passphrase": SECRET}, {"CBT_REPOSITORY": "/none"}),
    "a passphrase before the environment": info({**GIVEN, "passphrase": SECRET}, {"CBT_PASSPHRASE": OTHER}),
    "a passphrase before a file": info({**GIVEN, "passphrase": SECRET}, {"CBT_PASSPHRASE_FILE": "/none"}),
    "a file before the environment": info({**GIVEN, "passphrase_file": FILE}, {"CBT_PASSPHRASE": OTHER}),
    "a command before the environment": info(
        {**GIVEN, "passphrase_command": COMMAND}, {"CBT_PASSPHRASE": OTHER, "CBT_PASSPHRASE_FILE": "/none"}
    ),
    "an empty passphrase beside a file": info({**GIVEN, "passphrase": "", "passphrase_file": FILE}, {}),
    "an option without a value": info({**GIVEN, "passphrase": None, "passphrase_command": COMMAND}, {}),
    "an option without a value before the environment": info({**GIVEN, "passphrase_file": None}, RIGHT),
}
TWO = "parameters are mutually exclusive: {0}passphrase|{0}passphrase_file|{0}passphrase_command"
REFUSED = {
    "no repository": (info({}, RIGHT), "missing required arguments: repository"),
    "an empty repository": (info({}, {**RIGHT, "CBT_REPOSITORY": ""}), "missing required arguments: repository"),
    "an empty passphrase alone": (info({**GIVEN, "passphrase": ""}, RIGHT), "passphrase is empty"),
    "two given": (info({**GIVEN, "passphrase": SECRET, "passphrase_file": FILE}, {}), TWO.format("")),
    "two of the destination": (
        Case(
            "cbt_copy",
            {**GIVEN, "dest_repository": "/none", "dest_passphrase": "a b c d", "dest_passphrase_command": "x"},
        ),
        TWO.format("dest_"),
    ),
    "two new ones": (
        Case("cbt_repository", {**GIVEN, "new_passphrase": "a b c d", "new_passphrase_file": FILE}),
        TWO.format("new_"),
    ),
    "a file that is not there": (info({**GIVEN, "passphrase_file": "/none"}, {}), "from the file /none: No such file"),
    "a command that fails": (info({**GIVEN, "passphrase_command": "false"}, {}), "false failed: exit status 1"),
    "the environment is not for the destination": (
        Case(
            "cbt_copy",
            {**GIVEN, "passphrase": SECRET, "dest_repository": "{folder}/repository"},
            environment={"CBT_PASSPHRASE": SECRET},
        ),
        "is encrypted",
    ),
    "a libvirt of the environment": (
        Case("cbt_domain_info", {}, environment={"LIBVIRT_DEFAULT_URI": "none:///of-the-environment"}),
        "none:///of-the-environment",
    ),
    "a libvirt before the environment": (
        Case("cbt_domain_info", {"uri": "none:///given"}, environment={"LIBVIRT_DEFAULT_URI": "none:///x"}),
        "none:///given",
    ),
}
SET = {
    "a new passphrase from a file": Case(
        "cbt_repository", {**GIVEN, "passphrase": SECRET, "new_passphrase_file": "{folder}/other", "slot": "file"}
    ),
    "a new passphrase from a command": Case(
        "cbt_repository",
        {**GIVEN, "passphrase_file": FILE, "new_passphrase_command": "cat {folder}/third", "slot": "command"},
    ),
    "a destination with a file": Case(
        "cbt_copy",
        {
            **GIVEN,
            "passphrase_command": COMMAND,
            "dest_repository": "{folder}/dest",
            "dest_passphrase_file": "{folder}/other",
            "create_repository": True,
        },
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encrypted repository and files of passphrases."""
    folder = tmp_path_factory.mktemp("environment")
    with mock.patch.object(key_slots, "COST", 1 << 10):
        open_or_create(RepositoryLocation(str(folder / "repository"), passphrase=SECRET))
    for name, text in {"passphrase": SECRET, "other": OTHER, "third": "a third one"}.items():
        (folder / name).write_text(f"{text}\n")
        (folder / name).chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The result of each case."""
    return run_modules(folder, {**READ, **{name: case for name, (case, _why) in REFUSED.items()}, **SET})


@pytest.mark.parametrize("name", READ)
def test_options_and_environment_name_a_repository_and_its_passphrase(
    name: str, results: dict[str, dict[str, Any]]
) -> None:
    assert results[name]["repository"]["encrypted"]
    assert SECRET not in str(results[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_missing_or_given_twice_is_named(name: str, results: dict[str, dict[str, Any]]) -> None:
    assert results[name]["failed"]
    assert REFUSED[name][1] in results[name]["msg"]


def test_new_passphrases_and_those_of_a_destination_come_from_files_and_commands(
    folder: Path, results: dict[str, dict[str, Any]]
) -> None:
    assert [(results[name]["changed"], results[name].get("msg")) for name in SET] == [(True, None)] * 2 + [
        (False, None)
    ]
    for passphrase in (SECRET, OTHER, "a third one"):
        assert open_or_create(RepositoryLocation(str(folder / "repository"), passphrase=passphrase))
    assert open_or_create(RepositoryLocation(str(folder / "dest"), passphrase=OTHER))
    assert not any(secret in str(results[name]) for name in SET for secret in (SECRET, OTHER, "a third one"))


def test_every_option_with_a_variable_of_the_environment_is_documented() -> None:
    options = importlib.import_module("ansible_collections.kvm.cbt.plugins.module_utils._options")
    fragments = "".join(
        path.read_text() for path in sorted((Path(options.__file__).parents[1] / "doc_fragments").glob("_*.py"))
    )
    groups = (options.LIBVIRT, options.REPOSITORY, options.LOG)
    variables = {
        name: option["fallback"][1] for group in groups for name, option in group.items() if "fallback" in option
    }
    assert variables == {
        "uri": ["LIBVIRT_DEFAULT_URI"],
        "repository": ["CBT_REPOSITORY"],
        "passphrase": ["CBT_PASSPHRASE"],
        "passphrase_file": ["CBT_PASSPHRASE_FILE"],
        "log_path": ["CBT_LOG_PATH"],
    }
    assert [each for names in variables.values() for each in names if f"E({each})" not in fragments] == []
    assert not any("fallback" in option for option in {**options.DEST, **options.NEW_PASSPHRASE}.values())
