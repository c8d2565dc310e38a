# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the tree: which folder may import which, how large things may be, and what has to agree.

Lists of exceptions are exact: a test fails if an exception is missing or no longer needed. Remove exceptions, do not add them.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from returned import Opaque, keys_returned

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
ENGINE = PLUGINS / "module_utils" / "_cbt"
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("cbt_*.py"))

# The folders of the repository from the top down: each may import those after it.
REPOSITORY = [
    "repository/memory",
    "repository/dedup",
    "repository/sharing",
    "repository/records",
    "repository/views",
    "repository",
    "repository/packs",
    "repository/stores",
    "repository/format",
    "repository/crypto",
]
WINGS: dict[str, set[str]] = {
    "hypervisor": {"images", "hypervisor/allowed", "hypervisor/domain_xml"},
    "hypervisor/allowed": set(),
    "hypervisor/domain_xml": set(),
    "images": set(),
    "blocks": set(),
    "blocks/server": set(),
}
BELOW_OPERATIONS = {*REPOSITORY, *WINGS}
# Which verbs use which others.
VERBS = {
    "operations": {"operations/point", "operations/tracking", "operations/upkeep"},
    "operations/backup": {"operations/point", "operations/upkeep"},
    "operations/convert": set(),
    "operations/export": set(),
    "operations/point": set(),
    "operations/restore": {"operations/point"},
    "operations/tracking": {"operations/backup", "operations/point"},
    "operations/upkeep": set(),
    "operations/verify": set(),
}
ALLOWED: dict[str, set[str]] = {
    "": set(),
    **WINGS,
    **{folder: set(REPOSITORY[number + 1 :]) for number, folder in enumerate(REPOSITORY)},
    **{verb: others | BELOW_OPERATIONS for verb, others in VERBS.items()},
}
MOST_FILES = 15
MOST_PARAMETERS = 6
MOST_LINES = 60
PATH_LINES = 5000

# What modules import besides one verb.
REACHES: dict[str, set[str]] = {}
# Functions with more than six parameters, and how many they have.
WIDE: dict[tuple[str, str], int] = {}
LONG: dict[tuple[str, str], int] = {}
# What operations import of the stores. ``keys`` creates a repository and rebuilds a lost configuration: there is only a
# store then.
STORES_IN_OPERATIONS = {"operations.keys": {"repository.stores.base"}}
# The objects in operations with a method ``store``. They are no repositories.
STORERS = {"findings", "sink"}
# What only a kind of store knows.
KINDS = re.compile(r"\b_?s3|boto|bucket[^s]|fstab|endpoint_url|ismount|DirectoryStore", re.IGNORECASE)
# The file that chooses the kind, and rules of retention, whose buckets are spans of time.
KNOWS_KINDS = {"repository.location", "operations.upkeep.retention_rules"}
# Results that are made where they cannot be followed, so that their keys are not compared here.
OPAQUE = {
    ("cbt_backup_info", "restore_points"),
    ("cbt_domain_info", "domains"),
    ("cbt_each", "outcomes"),
}


def module_name(path: Path) -> str:
    """The dotted name of a file of the engine below the engine."""
    parts = path.relative_to(ENGINE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ENGINE.rglob("*.py"))}
PACKAGES = {name for name, path in FILES.items() if path.name == "__init__.py"}


def imported(path: Path) -> set[str]:
    """What a file imports of the engine, anywhere in it: also inside functions and for types alone."""
    package = path.relative_to(ENGINE).parts[:-1] if path.is_relative_to(ENGINE) else None
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        name = node.module or ""
        if node.level and package is not None:
            parts = [*package[: len(package) - node.level + 1], *name.split(".")]
        elif "_cbt" in name.split("."):
            parts = name.split(".")[name.split(".").index("_cbt") + 1 :]
        else:
            continue
        base = ".".join(filter(None, parts))
        for alias in node.names:
            full = ".".join(filter(None, (base, alias.name)))
            found.add(full if full in FILES else base)
    return found


IMPORTS = {name: imported(path) for name, path in FILES.items()}


def folder_of(name: str) -> str:
    """The folder of a module of the engine."""
    return name.replace(".", "/") if name in PACKAGES else name.replace(".", "/").rpartition("/")[0]


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Nodes that lead back to themselves."""
    reached: dict[str, set[str]] = {}
    for node in graph:
        seen: set[str] = set()
        waiting = list(graph[node])
        while waiting:
            each = waiting.pop()
            if each not in seen:
                seen.add(each)
                waiting += graph.get(each, ())
        reached[node] = seen
    return [
        sorted(other for other in seen if node in reached.get(other, ()))
        for node, seen in reached.items()
        if node in seen
    ]


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The functions of a file with their qualified names."""
    waiting: list[tuple[str, ast.AST]] = [("", ast.parse(path.read_text()))]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield name, node
        for child in ast.iter_child_nodes(node):
            own = (
                getattr(child, "name", "")
                if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
                else ""
            )
            waiting.append((".".join(filter(None, (name, own))), child))


def every_function() -> Iterator[tuple[tuple[str, str], ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The functions of all plugins by file, relative to the engine where they are of it, and name."""
    for path in sorted(PLUGINS.rglob("*.py")):
        file = path.relative_to(ENGINE if path.is_relative_to(ENGINE) else PLUGINS)
        for name, node in functions(path):
            yield (str(file), name), node


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a caller sees."""
    names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def constant(path: Path, name: str) -> Any:
    """The value that a file gives to a name at its top."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} does not define {name}")


def documented(module: str, what: str) -> Any:
    """DOCUMENTATION, EXAMPLES or RETURN of a module."""
    return yaml.safe_load(constant(PLUGINS / "modules" / f"{module}.py", what))


# Arrows


def test_folders_import_only_folders_below_them() -> None:
    arrows = defaultdict(set)
    for name, others in IMPORTS.items():
        for other in others:
            arrows[folder_of(name)].add(folder_of(other))
    wrong = {folder: others - ALLOWED[folder] - {"", folder} for folder, others in arrows.items()}
    assert {folder: others for folder, others in wrong.items() if others} == {}


def test_every_folder_has_its_rule() -> None:
    assert {folder_of(name) for name in FILES} == set(ALLOWED)


def test_no_file_leads_back_to_itself() -> None:
    assert circles({name: others - PACKAGES for name, others in IMPORTS.items()}) == []


def test_no_folder_leads_back_to_itself() -> None:
    arrows: dict[str, set[str]] = defaultdict(set)
    for name, others in IMPORTS.items():
        arrows[folder_of(name)] |= {folder_of(other) for other in others} - {folder_of(name)}
    assert circles(arrows) == []


def test_an_import_cycle_would_be_detected() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"], ["b", "c"]]


def test_packages_import_nothing() -> None:
    """A module that needs one file of a verb does not load them all. The engine itself prepares its own loading."""
    assert {name: IMPORTS[name] for name in PACKAGES if IMPORTS[name]} == {"": {"zipped"}}


def test_the_engine_imports_nothing_of_ansible() -> None:
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not [name for name in names if name.split(".")[0] in ("ansible", "ansible_collections")], path


def verb_of(name: str) -> str:
    """The verb a module of the engine belongs to, empty if to none."""
    parts = name.split(".")
    return parts[1] if parts[0] == "operations" and len(parts) > 1 else ""


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_one_verb_and_no_deeper(module: str) -> None:
    needed = imported(PLUGINS / "modules" / f"{module}.py") - {"errors", "printable"}
    beside = REACHES.get(module, set())
    assert beside <= needed, "no longer needed in REACHES"
    verbs = {verb_of(name) for name in needed - beside}
    assert verbs <= {max(verbs, default="")} - {""}


def test_one_place_turns_an_error_into_the_failure_of_a_module() -> None:
    calls = [
        (path.name, ast.unparse(node.func))
        for path in sorted((*(PLUGINS / "modules").glob("*.py"), *(PLUGINS / "module_utils").glob("*.py")))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and last_name(node.func) == "fail_json"
    ]
    assert sorted(calls) == [("_runtime.py", "module.fail_json"), ("_runtime.py", "super().fail_json")]


def last_name(node: ast.expr) -> str:
    """The last name of ``name`` or ``value.name``; empty for others."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def reaches(source: str) -> list[str]:
    """Where code reaches for the store of an object: read, named otherwise, handed on or asked for by its name."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr == "store" and last_name(node.value) not in STORERS)
        or (isinstance(node, ast.Constant) and node.value == "store")
    ]


@pytest.mark.parametrize(
    "code",
    [
        "self._repository.store.delete(name)",
        "store = repository.store",
        "unsound(refs, repository.store)",
        "lease.repository.store.spare = 0",
        "opened().store.list(folder)",
        "getattr(repository, 'store').list(folder)",
    ],
)
def test_a_reach_for_the_store_would_be_seen(code: str) -> None:
    assert len(reaches(code)) == 1


def test_operations_leave_the_store_to_the_repository() -> None:
    operations = {name: path for name, path in FILES.items() if name.startswith("operations")}
    assert {name: found for name, path in operations.items() if (found := reaches(path.read_text()))} == {}
    imported_stores = {name: {each for each in IMPORTS[name] if "stores" in each.split(".")} for name in operations}
    assert {name: stores for name, stores in imported_stores.items() if stores} == STORES_IN_OPERATIONS


def test_only_the_stores_and_the_location_know_which_kinds_of_stores_there_are() -> None:
    others = {name: path for name, path in FILES.items() if folder_of(name) != "repository/stores" and name}
    assert {name for name, path in others.items() if KINDS.search(path.read_text())} == KNOWS_KINDS
    interface = {"repository.stores.base", "repository.stores.reserve"}
    beside = {name for name in others for each in IMPORTS[name] - interface if each.startswith("repository.stores.")}
    assert beside == {"repository.location"}


# Sizes


def test_no_folder_has_too_many_files() -> None:
    sizes = {folder: sum(path.name != "__init__.py" for path in (ENGINE / folder).glob("*.py")) for folder in ALLOWED}
    assert {folder: size for folder, size in sizes.items() if size > MOST_FILES} == {}


def test_no_signature_is_too_wide() -> None:
    assert {key: parameters(node) for key, node in every_function() if parameters(node) > MOST_PARAMETERS} == WIDE


def test_no_function_is_too_long() -> None:
    lengths = {key: (node.end_lineno or 0) - node.lineno + 1 for key, node in every_function()}
    assert {key: length for key, length in lengths.items() if length > MOST_LINES} == LONG


def test_lines_of_plugins_have_at_most_120_columns() -> None:
    table = ENGINE / "hypervisor" / "allowed" / "table.py"  # one line for each element
    assert [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(PLUGINS.rglob("*.py"))
        if path != table
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(re.split(r"  # (?:type|noqa)", line)[0]) > 120  # what a checker reads does not count
    ] == []


# The core path


def listed(section: str) -> list[str]:
    """The files that a section of the map lists, as modules, in its order."""
    text = ast.get_docstring(ast.parse(FILES[""].read_text())) or ""
    block = re.search(rf"^{section}\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", text, re.DOTALL | re.MULTILINE)
    assert block is not None, f"the map has no section {section}"
    return [
        line.removesuffix(".py").replace("/", ".")
        for line in re.findall(r"^    ([\w/]+\.py)(?:  |$)", block[1], re.MULTILINE)
    ]


def test_the_core_path_is_there_and_can_be_read_in_an_afternoon() -> None:
    path = listed("The core path")
    assert 25 <= len(path) <= 40
    assert len(set(path)) == len(path)
    assert [name for name in path if name not in FILES] == []
    assert sum(len(FILES[name].read_text().splitlines()) for name in path) < PATH_LINES


def test_imports_of_the_core_path_stay_on_it_or_are_named_as_side_doors() -> None:
    path = set(listed("The core path"))
    leaving = {other for name in path for other in IMPORTS[name] if other not in path | PACKAGES}
    assert sorted(leaving) == sorted(listed("Side doors"))


def test_each_file_of_the_core_path_comes_after_those_it_builds_on() -> None:
    path = listed("The core path")
    assert [
        (name, other) for number, name in enumerate(path) for other in IMPORTS[name] if other in path[number + 1 :]
    ] == []


def test_where_to_look_names_files_and_what_is_in_them() -> None:
    text = ast.get_docstring(ast.parse(FILES[""].read_text())) or ""
    block = text.partition("Where to look\n-------------\n")[2].partition("\n\n")[0]
    rows = [re.split(r"  +", line.strip(), maxsplit=1)[1] for line in block.splitlines()]
    assert len(rows) >= 4
    for row in rows:
        path = None
        for name in re.split(r", (?:and )?", row):
            if name.endswith(".py"):
                path = ENGINE / name
                assert path.is_file(), row
            elif name.endswith("/"):
                assert (ENGINE / name).is_dir(), row
            else:
                assert path is not None and name in {each.rpartition(".")[2] for each, _node in functions(path)}, row


# What has to agree


@pytest.mark.parametrize("module", MODULES)
def test_results_are_documented(module: str) -> None:
    path = PLUGINS / ("action" if module == "cbt_each" else "modules") / f"{module}.py"
    returned = keys_returned(path, PLUGINS / "module_utils" / "_results.py")
    specified = documented(module, "RETURN")
    warned = {"warnings"} if ".warn(" in path.read_text() else set()  # Ansible returns these by itself
    assert set(returned) - {"changed", "diff", "failed", "msg", "warnings"} == set(specified) - {"warnings"}
    assert "warnings" not in specified or "warnings" in set(returned) | warned
    for name, value in specified.items():
        if "contains" in value and (module, name) not in OPAQUE:
            assert set(returned[name]) == set(value["contains"]), name


@pytest.mark.parametrize("module", MODULES)
def test_each_task_of_the_examples_runs_a_module(module: str) -> None:
    tasks = [task for each in documented(module, "EXAMPLES") for task in each.get("tasks", [each])]
    assert [task["name"] for task in tasks if not any("." in key for key in task)] == []


def test_values_without_documented_fields_are_listed() -> None:
    found = set()
    for module in MODULES:
        path = PLUGINS / ("action" if module == "cbt_each" else "modules") / f"{module}.py"
        returned = keys_returned(path, PLUGINS / "module_utils" / "_results.py")
        found |= {
            (module, name)
            for name, value in documented(module, "RETURN").items()
            if "contains" in value and isinstance(returned.get(name), Opaque)
        }
    assert found == OPAQUE


def test_the_options_of_cbt_each_are_those_of_its_documentation() -> None:
    def shape(options: Mapping[str, Any], within: str) -> dict[str, Any]:
        keys = ("type", "required", "default", "elements", "choices", "aliases")
        return {
            name: {
                **{key: option[key] for key in keys if key in option},
                **({"options": shape(option[within], within)} if within in option else {}),
            }
            for name, option in options.items()
        }

    spec = constant(PLUGINS / "action" / "cbt_each.py", "_SPEC")
    assert shape(spec, "options") == shape(documented("cbt_each", "DOCUMENTATION")["options"], "suboptions")


def test_the_version_in_restore_points_is_that_of_the_collection() -> None:
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    (path,) = [path for path in FILES.values() if re.search(r"^TOOL_VERSION\b", path.read_text(), re.MULTILINE)]
    assert constant(path, "TOOL_VERSION") == version


def tasks_in(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The tasks of a list, with those of its blocks."""
    for task in tasks:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks_in(task.get(part, []))


@pytest.mark.parametrize("role", sorted((ROOT / "roles").iterdir()), ids=lambda role: str(role.name))
def test_tasks_of_a_role_pass_its_log_path_and_passphrase_to_each_module(role: Path) -> None:
    expected = f"{{{{ {role.name}_log_path | default(omit, true) }}}}"
    for path in sorted((role / "tasks").glob("*.yml")):
        for task in tasks_in(yaml.safe_load(path.read_text()) or []):
            for name in {f"kvm.cbt.{module}" for module in MODULES} & task.keys():
                options = task[name]
                if name == "kvm.cbt.cbt_each":
                    options = (
                        options["options"]
                        if isinstance(options["options"], dict)
                        else task["vars"][f"__{role.name}_options"]
                    )
                assert options.get("log_path") == expected, f"{path.name}: {task['name']}"
                if "passphrase" in options:
                    for source in ("file", "command"):
                        variable = f"{{{{ {role.name}_passphrase_{source} | default(omit, true) }}}}"
                        assert options.get(f"passphrase_{source}") == variable, f"{path.name}: {task['name']}"
