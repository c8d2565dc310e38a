# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes everything from a definition that the table does not allow. Pure."""

from __future__ import annotations

import itertools
import re
import typing as t
from xml.etree import ElementTree

from ...printable import printable
from .rules import TEXT, Rule, Value
from .table import ALLOWED, REFUSED
from .values import Host, fits

_SHOWN = 100  # maximum characters of a part of a definition in a message
_MOST = 100  # maximum number of parts in the messages, without duplicates
_NAMESPACE = re.compile(r"\{(?:[^{}]*/)?([^{}/]*)/[0-9.]+\}|\{[^{}]*\}")


_NOTHING = Value("NONE")  # the rule of an attribute that the table does not list: no value is allowed


class Filtered(t.NamedTuple):
    """A filtered definition; ``changes`` and ``refused`` are texts for messages.

    ``changes`` are the parts removed or replaced, ``refused`` the reasons to refuse the definition.
    """

    root: ElementTree.Element
    changes: tuple[str, ...]
    refused: tuple[str, ...]


class _NotAllowed(Exception):
    """An element is not allowed. The message shows the element."""


class _Named:
    """Parts of a definition in their order, without duplicates, at most ``_MOST``."""

    def __init__(self) -> None:
        self._parts: dict[str, None] = {}
        self._more = 0

    def add(self, part: str) -> None:
        if part not in self._parts and len(self._parts) == _MOST:
            self._more += 1
        else:
            self._parts[part] = None

    def all(self) -> tuple[str, ...]:
        return (*self._parts, f"And {self._more} more.") if self._more else tuple(self._parts)


def filtered(root: ElementTree.Element, host: Host) -> Filtered:
    """Return a definition of what the table allows. Elements in ``metadata`` are shared with ``root``."""
    work = _Filter(host)
    try:
        kept = work.copy(root, "." if root.tag == "domain" else root.tag)
    except _NotAllowed as reason:
        kept = ElementTree.Element("domain")
        work.refused.add(str(reason))
    return Filtered(kept, work.changes.all(), work.refused.all())


class _Filter:
    def __init__(self, host: Host) -> None:
        self._host = host
        self.changes, self.refused = _Named(), _Named()

    def copy(self, element: ElementTree.Element, path: str) -> ElementTree.Element:
        """Return a filtered copy of the element.

        Raises _NotAllowed if the table does not list the element, or if an essential part is not allowed.
        """
        rule = ALLOWED.get(path)
        if rule is None or any(
            value.essential and not self._fits(value, text) for _name, text, value in _ruled(element, rule)
        ):
            raise _NotAllowed(_shown(path, element))
        if rule.free:
            element.tail = _blank(element.tail)
            return element
        kept = ElementTree.Element(element.tag)
        kept.text, kept.tail = _blank(element.text), _blank(element.tail)
        self._copy_values(element, kept, path, rule)
        for child in element:
            self._copy_child(child, kept, child.tag if path == "." else f"{path}/{child.tag}")
        return kept

    def _fits(self, rule: Value, text: str) -> bool:
        return fits(rule.kind, text.strip(), self._host)

    def _copy_values(self, element: ElementTree.Element, kept: ElementTree.Element, path: str, rule: Rule) -> None:
        """Copy the values that are allowed; replace or remove the others."""
        lost = []
        for name, text, value in _ruled(element, rule):
            what = _short(text) if name == TEXT else f"{_plain(name)}={_short(text)}"
            if self._fits(value, text):
                _set(kept, name, text if value.kind == "TEXT" else text.strip())
            elif value.instead is not None:
                _set(kept, name, value.instead)
                self.changes.add(f"{_named(path)} {what} was replaced by {value.instead}.")
            else:
                lost.append(what)
        if lost:
            self.changes.add(f"{_named(path)} {' '.join(lost)} was removed.")

    def _copy_child(self, child: ElementTree.Element, kept: ElementTree.Element, path: str) -> None:
        try:
            copied = self.copy(child, path)
        except _NotAllowed as reason:
            if path in ALLOWED and ALLOWED[path].essential:
                raise
            if path in REFUSED:
                self.refused.add(str(reason))
            else:
                self.changes.add(f"{reason} was removed.")
            return
        if not _is_empty(copied) or _is_empty(child):
            kept.append(copied)


def _ruled(element: ElementTree.Element, rule: Rule) -> t.Iterator[tuple[str, str, Value]]:
    """Yield the name, value and rule of each attribute of an element, and of its text."""
    for name, text in element.items():
        yield name, text, rule.values.get(name, _NOTHING)
    if (element.text or "").strip():
        yield TEXT, element.text or "", rule.values.get(TEXT, _NOTHING)


def _set(element: ElementTree.Element, name: str, value: str) -> None:
    if name == TEXT:
        element.text = value
    else:
        element.set(name, value)


def _blank(text: str | None) -> str | None:
    """Return a text that is white space only; None for any other."""
    return text if not (text or "").strip() else None


def _is_empty(element: ElementTree.Element) -> bool:
    return not element.attrib and not len(element) and not (element.text or "").strip()


def _plain(name: str) -> str:
    """Return a name with a short namespace, such as ``qemu:commandline``."""
    return _short(_NAMESPACE.sub(lambda found: f"{found[1]}:" if found[1] else "", name))


def _named(path: str) -> str:
    return "/".join(part for part in _plain(path).split("/") if part != "devices") if path != "." else "domain"


def _short(text: str) -> str:
    text = printable(" ".join(text[: _SHOWN * 4].split()))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _shown(path: str, element: ElementTree.Element) -> str:
    """Return the path of an element and its content, shortened for a message."""
    said: list[str] = []
    for each in itertools.islice(element.iter(), 10):
        said += [_plain(each.tag), *(f"{_plain(name)}={value}" for name, value in each.items()), each.text or ""]
    return f"{_named(path)} {_short(' '.join(said[1:]))}".strip()
