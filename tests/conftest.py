# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How tests are chosen, shared out to processes and timed; the README names the commands."""

from __future__ import annotations

import collections
import time
from pathlib import Path

import pytest
import soaks
from hypothesis import HealthCheck, settings

_SLOWEST = 20
_TESTS = Path(__file__).parent
_started = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this project."""
    group = parser.getgroup("kvm.cbt")
    group.addoption(
        "--quick", action="store_true", help="repeat as little as makes sense, and leave out tests marked slow"
    )
    group.addoption(
        "--soak",
        action="append",
        default=[],
        metavar="NAME[=COUNT]",
        help="run only the tests that this soak repeats, many times",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set the counts before test modules read them; also in each process of a run on several cores."""
    config.addinivalue_line("markers", "slow: takes too long for a quick run")
    config.addinivalue_line("markers", "soak(name): is repeated as often as this soak says; see tests/soaks.py")
    if config.getoption("quick"):
        soaks.make_quick()
    try:
        soaks.choose(word for words in config.getoption("soak") for word in words.split())
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    # No deadline: how long an example takes says nothing about whether it is right.
    settings.register_profile(
        "kvm.cbt", deadline=None, max_examples=soaks.examples(), suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("kvm.cbt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for. Integration tests come first: units are short, and fill up the cores at the end."""
    chosen = {word.partition("=")[0] for words in config.getoption("soak") for word in words.split()}
    kept = [item for item in items if _wanted(item, chosen, config.getoption("quick"))]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = sorted(kept, key=lambda item: item.path.relative_to(_TESTS).parts[0] != "integration")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print where the time went."""
    if hasattr(config, "workerinput"):
        return
    spent: collections.Counter[str] = collections.Counter()
    for report in (
        each for reports in terminalreporter.stats.values() for each in reports if isinstance(each, pytest.TestReport)
    ):
        spent[report.nodeid.partition("@")[0]] += report.duration  # type: ignore[assignment]
    if len(spent) < _SLOWEST:
        return
    terminalreporter.section("where the time went")
    for test, seconds in spent.most_common(_SLOWEST):
        terminalreporter.write_line(f"{seconds:7.1f} s  {test}")
    folders: collections.Counter[str] = collections.Counter()
    for test, seconds in spent.items():
        folders[str(Path(test.partition("::")[0]).parent)] += seconds  # type: ignore[assignment]
    for folder, seconds in folders.most_common():
        terminalreporter.write_line(f"{seconds / 60:5.1f} min  {folder}")
    terminalreporter.write_line(f"{(time.monotonic() - _started) / 60:5.1f} min  by the clock")


def _wanted(item: pytest.Item, chosen: set[str], quick: bool) -> bool:
    if chosen:
        marked = {mark.args[0] for mark in item.iter_markers("soak")}
        if _is_property(item):
            marked.add("examples")
        return bool(marked & chosen) or "all" in chosen and bool(marked)
    return not quick or item.get_closest_marker("slow") is None


def _is_property(item: pytest.Item) -> bool:
    return getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
