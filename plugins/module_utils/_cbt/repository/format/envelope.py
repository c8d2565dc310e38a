# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON objects with a magic, a version and a checksum. Pure.

An object is one line: {"kvm.cbt":"<kind>","version":1,"sha256":"<hex>","body":<JSON>} and a newline. The checksum
covers the kind, the version and the exact bytes of the body, so a changed bit anywhere is noticed.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import hashlib
import json
import re
import typing as t

from ...errors import DamagedObject, RepositoryError

MOST_VALUES = 1 << 18  # about, of one object; each takes a hundred bytes of memory
DEEPEST = 32  # levels of nested lists and objects
_LONG_NUMBER = re.compile(rb"[0-9]{1000}")  # older Pythons take minutes to parse one of a few million digits
_LINE = re.compile(
    rb'\{"kvm\.cbt":"([a-z]+)","version":([0-9]{1,9}),"sha256":"([0-9a-f]{64})","body":(\{.*\})\}\n', re.DOTALL
)


def _digest(kind: str, version: int, body: bytes) -> str:
    return hashlib.sha256(f"{kind} {version} ".encode() + body).hexdigest()


def text(body: t.Mapping[str, t.Any]) -> bytes:
    """Return the bytes of a body; equal bodies give equal bytes.

    Names of files that are not UTF-8 are preserved.
    """
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


def encode(kind: str, version: int, body: t.Mapping[str, t.Any]) -> bytes:
    """Return an object of this kind with ``body``; equal bodies give equal bytes."""
    data = text(body)
    return b'{"kvm.cbt":"%s","version":%d,"sha256":"%s","body":%s}\n' % (
        kind.encode(),
        version,
        _digest(kind, version, data).encode(),
        data,
    )


@functools.cache
def shape_of(record: t.Any) -> t.Mapping[str, t.Any]:
    """Return the types of the fields of a dataclass, by name."""
    return t.get_type_hints(record)


def fits(value: t.Any, wanted: t.Any) -> bool:
    """Return True if a value from JSON is of a type.

    Types are those of JSON, and ``t.Any``, ``t.Optional``, lists, tuples, mappings and dataclasses of them.
    """
    if wanted is t.Any:
        return True
    origin, arguments = t.get_origin(wanted), t.get_args(wanted)
    if origin is None and isinstance(wanted, type):  # before Python 3.11, list[str] is an instance of type, too
        if dataclasses.is_dataclass(wanted):
            return isinstance(value, dict) and all(
                fits(value.get(field), each) for field, each in shape_of(wanted).items()
            )
        return isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)  # True is not a number here
    if origin is t.Union:
        return any(fits(value, each) for each in arguments)
    if origin is collections.abc.Mapping:
        return isinstance(value, dict) and all(fits(each, arguments[1]) for each in value.values())
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(each, arguments[0]) for each in value)
    return False


def parsed(data: bytes) -> dict[str, t.Any]:
    """Return an object of JSON.

    Raises ValueError if it is invalid, nested too deep, or has too many values or too long a number for time and
    memory.
    """
    if values_in(data) > MOST_VALUES or _LONG_NUMBER.search(data):
        raise ValueError("it has more values, or a longer number, than an object may have")
    try:
        # Decoded here, because json also takes bytes in other encodings, in which the check above misses a long number.
        body: dict[str, t.Any] = json.loads(data.decode(errors="surrogatepass"))
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error
    level: list[t.Any] = [body]
    for _depth in range(DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return body
    raise ValueError("its values are nested too deep")


def values_in(data: bytes) -> int:
    """Return an upper bound of the number of values in JSON."""
    return sum(map(data.count, (b",", b":", b"[", b"{")))


def decode(
    kind: str, version: int, data: bytes, name: str, shape: t.Mapping[str, t.Any] | None = None
) -> dict[str, t.Any]:
    """Return the body of an object.

    Its fields have the types that ``shape`` gives; it may have other fields. Raises DamagedObject if the object is not
    what was written, RepositoryError if it is of a newer version than ``version``.
    """
    match = _LINE.fullmatch(data)
    if match is None or match.group(1).decode() != kind:
        raise DamagedObject(f"{name} is damaged: it is not a {kind} of kvm.cbt")
    found = int(match.group(2))
    if _digest(kind, found, match.group(4)) != match.group(3).decode():
        raise DamagedObject(f"{name} is damaged: its checksum does not match")
    if found > version:
        raise RepositoryError(
            f"{name} has format {found}; this version of kvm.cbt reads up to format {version}. Update the collection."
        )
    try:
        body = parsed(match.group(4))
    except ValueError as error:  # the checksum matches, but it is not JSON
        raise DamagedObject(f"{name} is damaged: it cannot be read ({error})") from error
    wrong = [field for field, wanted in (shape or {}).items() if not fits(body.get(field), wanted)]
    if wrong:
        raise DamagedObject(f"{name} is damaged: it lacks required fields of a {kind} ({', '.join(wrong)})")
    return body
