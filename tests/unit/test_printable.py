"""Text that a person reads moves no cursor and turns nothing around, whatever a repository, a domain or an agent calls itself."""

from __future__ import annotations

import unicodedata

import fleet
import pytest
from hypothesis import given
from hypothesis import strategies as some

from _cbt.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web1", "web1"),
        ("Zürich 東京 \U0001f4be", "Zürich 東京 \U0001f4be"),
        ("web\x1b[2J\x1b]0;title\x07", "web\\x1b[2J\\x1b]0;title\\x07"),
        ("web\r[ok]", "web\\r[ok]"),
        ("web\nok: all is well", "web\\nok: all is well"),
        ("cod\u202egpj.exe", "cod\\u202egpj.exe"),
        ("\u2066a\u2069\u200b\ufeff", "\\u2066a\\u2069\\u200b\\ufeff"),
        ("a\x9b31m\x7f\x00", "a\\x9b31m\\x7f\\x00"),
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),
        ("a file \udcff", "a file \\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_control_and_format_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(some.text())
def test_nothing_that_is_shown_controls_a_terminal(text: str) -> None:
    shown = printable(text)
    assert {unicodedata.category(each) for each in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()
    assert printable(shown) == shown


def test_a_summary_escapes_names_and_errors() -> None:
    hostile = "web\x1b[2J\r\n\u202e"
    outcomes = [{"label": hostile, "text": hostile, "failed": True}]
    hostvars = {
        "kvm1": {"backup_outcome": {"outcomes": outcomes}},
        "kvm2": {"backup_outcome": {"failed": True, "msg": hostile}},
        "kvm3": {"backup_found": {"domains": [], "missing": [hostile]}},
    }
    lines = fleet.summary(list(hostvars), hostvars, "backup")["lines"]
    assert len([line for line in lines if "web\\x1b[2J\\r\\n\\u202e" in line]) == 3
    assert all(line.isprintable() for line in lines)
