# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes README.md and meta/main.yml of every role from its meta/argument_specs.yml and defaults/main.yml."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"


@functools.cache
def spec_of(role: Path) -> dict[str, Any]:
    """The specification of the role's main entry."""
    loaded: dict[str, Any] = yaml.safe_load((role / "meta/argument_specs.yml").read_text())
    return loaded["argument_specs"]["main"]


@functools.cache
def defaults_of(role: Path) -> dict[str, Any]:
    """The defaults of the role's variables."""
    return yaml.safe_load((role / "defaults/main.yml").read_text()) or {}


def refers(default: Any) -> bool:
    """Return True for a default that refers to other variables, which the specification only describes."""
    return isinstance(default, str) and "{{" in default


def metadata(role: Path) -> str:
    """What the role's meta/main.yml is to hold."""
    lines = (role / "meta/argument_specs.yml").read_text().splitlines()[:5]
    return (
        "\n".join(lines)
        + f"""
galaxy_info:
  author: The kvm.cbt authors
  description: {spec_of(role)["short_description"]}
  license: GPL-3.0-or-later
  min_ansible_version: "2.18"
  platforms:
    - name: Debian
      versions: [bookworm, trixie]
    - name: Ubuntu
      versions: [jammy, noble]
    - name: EL
      versions: ["9", "10"]
    - name: opensuse
      versions: [all]
  galaxy_tags: [backup, kvm, libvirt, qemu]

dependencies: []
"""
    )


def readme(role: Path) -> str:
    """What the role's README.md is to hold."""
    spec = spec_of(role)
    lines = [f"# kvm.cbt.{role.name}", "", f"{spec['short_description']}.", ""]
    lines += [f"{_plain(text)}\n" for text in _texts(spec["description"])]
    lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
    lines += list(_rows(spec["options"], defaults_of(role)))
    lines += [
        "",
        "```yaml",
        f"- name: {spec['short_description']}",
        "  hosts: hypervisors",
        "  become: true",
        "  roles:",
        f"    - kvm.cbt.{role.name}",
        "```",
        "",
        "<!-- Written by tests/tools/role_readmes.py from meta/argument_specs.yml. -->",
    ]
    return "\n".join(lines) + "\n"


def _rows(options: dict[str, Any], defaults: dict[str, Any], within: str = "") -> Iterator[str]:
    for name, option in options.items():
        referred = re.search(r"\bcbt_\w+", str(defaults.get(name))) if refers(defaults.get(name)) else None
        default = f"`{referred[0]}`" if referred else _default(option)
        yield f"| {within}`{name}` | {_type(option)} | {default} | {_meaning(option)} |"
        yield from _rows(option.get("options", {}), {}, f"{within}`{name}` → ")


def _texts(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _plain(text: str) -> str:
    """Ansible's markup as Markdown."""
    text = re.sub(r"O\(([^():#]+)#(?:module|role:main):([^()]+)\)", r"`\2` of `\1`", text)
    return re.sub(r"[A-Z]\(([^()]+)\)", r"`\1`", text)


def _type(option: dict[str, Any]) -> str:
    return f"list of {option['elements']}" if "elements" in option else str(option["type"])


def _default(option: dict[str, Any]) -> str:
    if "default" not in option:
        return "required" if option.get("required") else ""
    value = option["default"]
    shown = (
        str(value).lower()
        if isinstance(value, bool)
        else value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True, width=1000)
    )
    shown = str(shown).removesuffix("\n...\n").strip().replace("|", "\\|") or "''"
    return f"`{shown}`"


def _meaning(option: dict[str, Any]) -> str:
    choices = f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}." if "choices" in option else ""
    return " ".join(_plain(text) for text in _texts(option["description"])) + choices


if __name__ == "__main__":
    for path in sorted(ROLES.iterdir()):
        (path / "README.md").write_text(readme(path))
        (path / "meta/main.yml").write_text(metadata(path))
