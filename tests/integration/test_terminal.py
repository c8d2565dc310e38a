# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules print through Ansible holds no control characters of names and paths."""

from __future__ import annotations

import json
import re
from pathlib import Path

from plays import run_playbook

_HOSTILE = "web\x1b[2J\r\u202e\nall is well"
_SHOWN = "web\\x1b[2J\\r\\u202e\\nall is well"


def test_errors_and_the_lines_of_cbt_each_show_escapes(collections: Path, tmp_path: Path) -> None:
    options = {"repository": f"/nonexistent/{_HOSTILE}"}
    each = {"module": "kvm.cbt.cbt_verify", "options": options, "each": [{"label": _HOSTILE}]}
    tasks = [
        {f"kvm.cbt.{name}": given, "ignore_errors": True}
        for name, given in (("cbt_verify", options), ("cbt_each", each))
    ]
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    words = [
        "-i",
        "localhost,",
        "-c",
        "local",
        "-e",
        "ansible_python_interpreter=/usr/bin/python3",
        tmp_path / "play.yml",
    ]
    shown = run_playbook(words, collections, tmp_path).stdout
    assert "ignored=2" in shown, shown
    assert f"[localhost] {_SHOWN}: FAILED: " in shown
    lines = [line for line in shown.splitlines() if "nonexistent" in line]
    assert len(lines) >= 3, shown
    assert re.findall("[\x00-\x09\x0b-\x1f\u202e]", shown) == []
    assert not any(line.startswith("all is well") for line in shown.splitlines())
