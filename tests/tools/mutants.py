# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows that the tests notice the faults in ``mutations.py``: each fault is made in a copy of the checkout, and its tests must fail.

    .venv/bin/python tests/tools/mutants.py [--baseline] [--only unit|integration] [NAME...]

With ``--baseline`` the tests run without any fault first, and must pass. The checkout itself is never changed. The exit code is 1 if a
fault survives, or if it cannot be made, because the text it replaces is not there exactly once. Tests in tests/integration
run with a libvirt of their own (tests/lab/isolated.sh), as root.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mutations import MUTATIONS, Mutation

CHECKOUT = Path(__file__).resolve().parents[2]
ENGINE = "plugins/module_utils/_cbt"
LIMIT = 300  # seconds for the tests of one fault
END_WITHIN = 60  # seconds in which pytest cleans up once it is asked to end
FAILED = re.compile(r"^FAILED (.+?)(?: - |$)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one fault: the test that killed it, or None and why there is none."""

    name: str
    killer: str | None
    why: str
    seconds: float

    @property
    def line(self) -> str:
        """A row of the table."""
        return f"{self.name:60} {self.seconds:6.1f} s  {self.killer or self.why}"


@contextlib.contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of what git knows, or would add, of the checkout."""
    git = ["git", "-c", f"safe.directory={CHECKOUT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory(prefix="mutants-", dir="/var/tmp") as folder:
        tree = Path(folder)
        tree.chmod(0o755)  # QEMU may have to come by
        for name in filter(None, listed.split("\0")):
            if (CHECKOUT / name).is_file() and not (CHECKOUT / name).is_symlink():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, tree / name)
        yield tree


@contextlib.contextmanager
def mutated(tree: Path, mutation: Mutation) -> Iterator[str | None]:
    """The tree with a fault; why it cannot be made, if so."""
    path = tree / ENGINE / mutation.file
    whole = path.read_text(encoding="utf-8") if path.exists() else ""
    count = whole.count(mutation.before)
    if count != 1:
        yield f"NOT MADE: the text is {count} times in {mutation.file}"
        return
    path.write_text(whole.replace(mutation.before, mutation.after), encoding="utf-8")
    try:
        yield None
    finally:
        path.write_text(whole, encoding="utf-8")


def command(tests: Sequence[str]) -> list[str]:
    """What runs these tests, up to the first that fails."""
    isolated = ["tests/lab/isolated.sh"] if any(test.startswith("integration/") for test in tests) else []
    return [
        *isolated,
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-rfE",
        "-p",
        "no:cacheprovider",
        *(f"tests/{test}" for test in tests),
    ]


def run(tree: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """Exit code and output of pytest; None if it took too long."""
    # Bytecode is taken for that of the source by time and size alone, which a fault may leave as they were.
    environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
    process = subprocess.Popen(
        command(tests), cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _errors = process.communicate(timeout=LIMIT)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End pytest, if it still runs: in order, so that it ends domains and mounts of its own, or at once if it takes too long."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=END_WITHIN)
    if process.poll() is None:
        process.kill()
        process.communicate()


def judged(name: str, code: int | None, output: str, seconds: float) -> Outcome:
    """The outcome, by what pytest said: only a test that fails kills, not one that cannot be collected or set up."""
    found = FAILED.search(output)
    if code == 1 and found is not None:
        return Outcome(name, found.group(1).removeprefix("tests/"), "", seconds)
    if code == 0:
        return Outcome(name, None, "SURVIVED", seconds)
    why = (
        f"took longer than {LIMIT} s"
        if code is None
        else f"pytest ended with {code}: {output.strip().splitlines()[-1:]}"
    )
    return Outcome(name, None, f"NOT TESTED: {why}", seconds)


def tried(tree: Path, mutation: Mutation) -> Outcome:
    """Make one fault and see which test notices."""
    began = time.monotonic()
    with mutated(tree, mutation) as obstacle:
        if obstacle is not None:
            return Outcome(mutation.name, None, obstacle, 0.0)
        code, output = run(tree, mutation.tests)
    return judged(mutation.name, code, output, time.monotonic() - began)


def baseline(tree: Path, mutations: Sequence[Mutation]) -> bool:
    """True if all the tests pass where there is no fault."""
    tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    for kind in ("unit/", "integration/"):
        chosen = [test for test in tests if test.startswith(kind)]
        code, output = run(tree, chosen) if chosen else (0, "")
        print(f"baseline, {kind[:-1]}: {output.strip().splitlines()[-1] if output.strip() else 'no tests'}", flush=True)
        if code != 0:
            print(output)
            return False
    return True


def main() -> int:
    """Try them all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of faults; all if none is given")
    parser.add_argument("--baseline", action="store_true", help="whether to run the tests without a fault first")
    parser.add_argument("--only", choices=["unit", "integration"], help="try only faults whose tests are of this kind")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        parser.error(f"there is no mutation {', '.join(sorted(unknown))}")
    chosen = [each for each in MUTATIONS if not arguments.names or each.name in arguments.names]
    chosen = [each for each in chosen if arguments.only is None or each.tests[0].startswith(f"{arguments.only}/")]
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with copied_tree() as tree:
        if arguments.baseline and not baseline(tree, chosen):
            return 1
        outcomes = []
        for mutation in chosen:
            outcomes.append(tried(tree, mutation))
            print(outcomes[-1].line, flush=True)
    alive = [each for each in outcomes if each.killer is None]
    print(f"{len(outcomes) - len(alive)} of {len(outcomes)} killed in {sum(each.seconds for each in outcomes):.0f} s")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
