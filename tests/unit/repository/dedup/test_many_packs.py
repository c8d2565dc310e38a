"""The benchmark of a million packs works, and what it carries out on some thousands needs no more memory than they take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "many_packs.py"


def test_every_step_does_what_it_says() -> None:
    printed = subprocess.run(
        [sys.executable, str(SCRIPT), "--packs", "12000", "--points", "9", "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    steps = {each["step"]: each for each in json.loads(printed)}
    assert {name: each["what"] for name, each in steps.items()} == {
        "information": "12000 packs, 18 points",
        "first backup's start": "1980 packs of the base",
        "next backup's start": "1980 packs of the base",
        "retention, planned": "4 points would go",
        "retention": "4 points and 124 objects deleted",
    }
    assert max(each["mib"] for each in steps.values()) < 128
