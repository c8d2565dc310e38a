# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only grammar of the names of objects in a repository, and of the parts of these names.

Pure. Names are built and parsed only here. A store reads, writes, lists and deletes only objects whose names match this
grammar. Other files in a repository are foreign and are left alone.
"""

from __future__ import annotations

import functools
import re
import typing as t

from ...errors import DamagedObject

CONFIGURATION = "repository.json"
RECORD = "collected.json"
TEMPORARY = "tmp"
RESERVE = "reserve"  # files that keep room free, see stores/reserve.py

PACKS = "packs"
POINTS = "points"
LEASES = "leases"
DRAFTS = "drafts"
TRASH = "trash"
CONDEMNED = "condemned"
DOOMED = "doomed"
DAMAGED = "damaged"
VERIFIED = "verified"
REMOVED = "removed"
HOLDS = "holds"
HOOKS = "hooks"
EXPENDABLE = (VERIFIED, HOOKS)  # folders whose objects may be lost, which costs only work

MACHINE_FILE_KINDS = ("loader", "nvram", "kernel", "initrd", "dtb", "tpm")
SEAL = 40  # bytes that sealing adds to an object
_LONGEST_DOMAIN = 255  # bytes; libvirt keeps a definition in a file of this name
_LONGEST_FILE = 128  # characters
_SHOWN = 200  # characters of a bad name in a message

# Parts of names. None of them can be empty, "." or "..", or contain a slash or a control character.
_PARTS: t.Mapping[str, str] = {
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "point": r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}",
    "target": r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,31}",
    "file": r"(?!(?i:manifest\.json)(?:/|\Z))[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}",
    "map": r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,123}\.map",
    "pack": r"[0-9a-f]{32}",
    "two": r"[0-9a-f]{2}",
    "session": r"[0-9a-f]{16}",
    "mark": r"[0-9a-f]{16}",
    "number": r"[0-9]{1,9}",
    "run": r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}(?:-[0-9a-f]{8})?",  # id of a restore point, or that and 8 random digits
    "selection": r"latest|all|chosen",
    "slices": r"[1-9][0-9]{0,2}",
}
# Expressions are compiled when they are first used, because compiling them takes time at each start.
_OF_MAP = r"(?:-(?:[0-9a-f]{8}|[0-9]{1,4}))?\.map"  # what follows the target in the name of a map
_RANDOM = r"[a-z0-9_]{8}|[0-9a-f]{16}"  # earlier versions made the former
_CONTROL = "[\0-\x1f\x7f-\x9f\ud800-\udfff]"  # and surrogates, which stand for bytes that are not UTF-8


class Kind(t.NamedTuple):
    """A kind of object: title, template of its name, and largest size in bytes.

    The template contains the parts of the name in braces.
    """

    title: str
    template: str
    largest: int

    def name(self, **parts: str) -> str:
        """Return the name of an object of this kind. Raises DamagedObject if a part is not of the grammar."""
        name = self.template.format(**parts)
        if parsed(name) != (self, parts):
            raise DamagedObject(f"No {self.title} can be called {shown(name)}")
        return name


class Name(t.NamedTuple):
    """The kind of an object and the parts of its name."""

    kind: Kind
    parts: t.Mapping[str, str]

    @property
    def point(self) -> tuple[str, str]:
        """Return domain UUID and id of the restore point that the object belongs to."""
        return self.parts["uuid"], self.parts["point"]

    @property
    def pack(self) -> bytes:
        """Return the id of the pack that the object is, or that it is about."""
        return bytes.fromhex(self.parts["pack"])


_KIB, _MIB = 1 << 10, 1 << 20

REPOSITORY_KIND = Kind("configuration", CONFIGURATION, 256 * _KIB)
RECORD_KIND = Kind("record of the last collection", RECORD, 64 * _KIB)
PACK_KIND = Kind("pack", "packs/{two}/{pack}", 96 * _MIB)
MANIFEST_KIND = Kind("manifest", "points/{uuid}/{point}/manifest.json", 4 * _MIB)
MAP_KIND = Kind("extent map", "points/{uuid}/{point}/{map}", 64 * _MIB)
FILE_KIND = Kind("file of a restore point", "points/{uuid}/{point}/{file}", 16 * _MIB)
LEASE_KIND = Kind("lease", "leases/{session}", 64 * _KIB)
DRAFT_KIND = Kind("draft", "drafts/{session}/{uuid}/{point}/{mark}", 4 * _MIB)
TRASH_KIND = Kind("trash entry", "trash/{uuid}/{point}/{mark}", 4 * _MIB)
CONDEMNED_PACK_KIND = Kind("announcement of a pack", "condemned/{pack}", 64 * _KIB)
CONDEMNED_FILE_KIND = Kind("announcement of a file", "condemned/{uuid}/{point}/{file}", 64 * _KIB)
DOOMED_KIND = Kind("deletion list", "doomed/{session}/{number}", 4 * _MIB)
DAMAGED_KIND = Kind("record of damage", "damaged/{pack}", 1 * _MIB)
VERIFIED_KIND = Kind("verification", "verified/{uuid}/{point}", 64 * _KIB)
TURN_KIND = Kind("turn of a verification", "verified/{uuid}/turn-{selection}-{slices}", 64 * _KIB)
REMOVED_KIND = Kind("record of removed points", "removed/{uuid}/{mark}", 256 * _KIB)
HOLD_KIND = Kind("hold", "holds/{uuid}/{point}/{mark}", 8 * _MIB)
HOOKS_KIND = Kind("hooks", "hooks/{uuid}/{run}-{number}", 2 * _MIB)
COMPACTION_KIND = Kind("hooks of a compaction", "hooks/compaction/{session}-{number}", 2 * _MIB)

KINDS: tuple[Kind, ...] = (
    REPOSITORY_KIND,
    RECORD_KIND,
    PACK_KIND,
    MANIFEST_KIND,
    MAP_KIND,
    FILE_KIND,
    LEASE_KIND,
    DRAFT_KIND,
    TRASH_KIND,
    CONDEMNED_PACK_KIND,
    CONDEMNED_FILE_KIND,
    DOOMED_KIND,
    DAMAGED_KIND,
    VERIFIED_KIND,
    TURN_KIND,
    REMOVED_KIND,
    HOLD_KIND,
    HOOKS_KIND,
    COMPACTION_KIND,
)


@functools.cache
def _pattern(template: str) -> t.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    pieces[::2] = map(re.escape, pieces[::2])
    pieces[1::2] = [f"(?P<{part}>{_PARTS[part]})" for part in pieces[1::2]]
    return re.compile("".join(pieces))


# Patterns are compiled when a name of their folder is first read: compiling all takes a few milliseconds of each start.
_BY_FOLDER: dict[str, list[Kind]] = {}
for _kind in KINDS:
    _BY_FOLDER.setdefault(_kind.template.partition("/")[0], []).append(_kind)
_FOLDER_TEMPLATES = tuple(
    "/".join(template[:depth])
    for template in (kind.template.split("/") for kind in KINDS)
    for depth in range(1, len(template))
)


def parsed(name: str) -> Name | None:
    """Return kind and parts of a name, or None if it is not the name of an object."""
    for kind in _BY_FOLDER.get(name.partition("/")[0], ()):
        found = _pattern(kind.template).fullmatch(name)
        if found is not None:
            parts = found.groupdict()
            return Name(kind, parts) if "two" not in parts or parts["pack"].startswith(parts["two"]) else None
    return None


def is_object(name: str) -> bool:
    """Return True if this is the name of an object."""
    return parsed(name) is not None


@functools.lru_cache(maxsize=4096)
def is_folder(name: str) -> bool:
    """Return True if objects can have names that begin with this and a slash."""
    top = name.partition("/")[0]
    return any(_pattern(each).fullmatch(name) for each in _FOLDER_TEMPLATES if each.startswith(top))


def check_folder(name: str) -> str:
    """Return the name of a folder. Raises DamagedObject if no object can be in it."""
    if not is_folder(name):
        raise DamagedObject(f"No folder of a repository can be called {shown(name)}")
    return name


def check_object(name: str) -> str:
    """Return the name of an object. Raises DamagedObject if it is not one."""
    if parsed(name) is None:
        raise DamagedObject(f"No object of a repository can be called {shown(name)}")
    return name


def largest(name: str) -> int:
    """Return the largest size in bytes of an object of this name before it is sealed.

    Raises DamagedObject if it is not the name of an object.
    """
    found = parsed(check_object(name))
    return found.kind.largest if found is not None else 0


def largest_stored(name: str) -> int:
    """Return the largest size in bytes of an object in the store, sealed or not.

    Raises as ``largest`` does.
    """
    return largest(name) + SEAL


# Parts of names that come from elsewhere: from a manifest, or from libvirt.


def _fits(part: str, value: str) -> bool:
    return re.fullmatch(_PARTS[part], value) is not None


def is_uuid(value: str) -> bool:
    """Return True if this is the UUID of a domain, as libvirt writes it."""
    return _fits("uuid", value)


def is_target(value: str) -> bool:
    """Return True if this is the target of a disk, such as ``vda``."""
    return _fits("target", value)


def is_map_name(value: str, target: str) -> bool:
    """Return True if the map of the disk with this target can have this name."""
    return _fits("file", value) and value.startswith(target) and re.fullmatch(_OF_MAP, value[len(target) :]) is not None


def is_domain_name(value: str) -> bool:
    """Return True if libvirt can have given this name to a domain.

    Such a name contains no slash and no control character. It is part of names of files, but not of objects.
    """
    if value in ("", ".", "..") or "/" in value or re.search(_CONTROL, value):
        return False
    return len(value.encode()) <= _LONGEST_DOMAIN


def shown(value: object) -> str:
    """Return a name for a message: in quotes, escaped and cut to 200 characters."""
    text = value if isinstance(value, str) else type(value).__name__
    return repr(text[:_SHOWN]) + "…" * (len(text) > _SHOWN)


def _checked(part: str, value: object, what: str) -> str:
    if isinstance(value, str) and _fits(part, value):
        return value
    raise DamagedObject(f"{shown(value)} is not {what}")


def check_uuid(value: object) -> str:
    """Return the UUID of a domain. Raises DamagedObject if it is not one."""
    return _checked("uuid", value, "the UUID of a domain")


def check_point_id(value: object) -> str:
    """Return the id of a restore point. Raises DamagedObject if it is not one."""
    return _checked("point", value, "the id of a restore point")


def check_target(value: object) -> str:
    """Return the target of a disk. Raises DamagedObject if it is not one."""
    return _checked("target", value, "the target of a disk")


def check_file_name(value: object) -> str:
    """Return the name of a file of a restore point. Raises DamagedObject if it is not one."""
    return _checked("file", value, "the name of a file of a restore point")


def check_map_name(value: str, target: str) -> str:
    """Return the name of the map of a disk. Raises DamagedObject if it is not one."""
    if not is_map_name(value, target):
        raise DamagedObject(f"{shown(value)} is not the name of a map of {target}")
    return value


def check_repository_id(value: object) -> str:
    """Return the id of a repository. Raises DamagedObject if it is not one."""
    return _checked("pack", value, "the id of a repository")


def check_domain_name(value: str) -> str:
    """Return the name of a domain. Raises DamagedObject if it is not one."""
    if not is_domain_name(value):
        raise DamagedObject(f"{shown(value)} is not the name of a domain")
    return value


# Building names.


def pack(pack_id: bytes) -> str:
    """Return the name of the object that contains a pack."""
    text = pack_id.hex()
    return f"{PACKS}/{text[:2]}/{text}"  # there are many packs, and the name of an id needs no check


def point_folder(uuid: str, point_id: str) -> str:
    """Return the folder of the objects of a restore point."""
    return f"{POINTS}/{check_uuid(uuid)}/{check_point_id(point_id)}"


def manifest(uuid: str, point_id: str) -> str:
    """Return the name of the object whose existence makes a restore point exist."""
    return MANIFEST_KIND.name(uuid=uuid, point=point_id)


def point_file(uuid: str, point_id: str, file: str) -> str:
    """Return the name of another object of a restore point: a map, or a file."""
    return f"{point_folder(uuid, point_id)}/{check_file_name(file)}"


def map_file(target: str, suffix: str = "") -> str:
    """Return the name of the map of a disk in its restore point.

    ``suffix`` is 8 random hex digits of the run that stores it.
    """
    return check_map_name(f"{target}-{suffix}.map" if suffix else f"{target}.map", check_target(target))


def own_file(name: str, suffix: str) -> str:
    """Return the name, in its restore point, of the object that contains a file.

    ``suffix`` is 8 random hex digits.
    """
    return check_file_name(f"{check_file_name(name)[: _LONGEST_FILE - 1 - len(suffix)]}-{suffix}")


def lease(lease_id: str) -> str:
    """Return the name of the lease of a session."""
    return LEASE_KIND.name(session=lease_id)


def draft(lease_id: str, uuid: str, point_id: str, suffix: str) -> str:
    """Return the name of a draft of a manifest."""
    return DRAFT_KIND.name(session=lease_id, uuid=uuid, point=point_id, mark=suffix)


def trash_entry(uuid: str, point_id: str, suffix: str) -> str:
    """Return the name of an entry of the trash."""
    return TRASH_KIND.name(uuid=uuid, point=point_id, mark=suffix)


def manifest_kept_by(name: str) -> str:
    """Return the name of the manifest that an object is, or is a copy of.

    The object is a manifest, a draft or an entry of the trash. Raises DamagedObject for others.
    """
    found = parsed(name)
    if found is None or found.kind not in (MANIFEST_KIND, DRAFT_KIND, TRASH_KIND):
        raise DamagedObject(f"{shown(name)} keeps no manifest")
    return manifest(*found.point)


def trash_folder(uuid: str, point_id: str) -> str:
    """Return the folder of the trash entries of a restore point."""
    return f"{TRASH}/{check_uuid(uuid)}/{check_point_id(point_id)}"


def announcement(name: str) -> str:
    """Return the name of the object that condemns a pack or a file of a restore point.

    Raises DamagedObject for other objects.
    """
    found = parsed(name)
    if found is not None and found.kind is PACK_KIND:
        return CONDEMNED_PACK_KIND.name(pack=found.parts["pack"])
    if found is not None and found.kind in (MAP_KIND, FILE_KIND):
        return CONDEMNED_FILE_KIND.name(
            uuid=found.parts["uuid"], point=found.parts["point"], file=name.rpartition("/")[2]
        )
    raise DamagedObject(
        f"The end of {shown(name)} cannot be announced: it is neither a pack nor a file of a restore point"
    )


def announced(name: str) -> str | None:
    """Return the name of the object that this object condemns, or None."""
    found = parsed(name)
    if found is not None and found.kind is CONDEMNED_PACK_KIND:
        return pack(found.pack)
    if found is not None and found.kind is CONDEMNED_FILE_KIND:
        return point_file(*found.point, found.parts["file"])
    return None


def is_collectable(name: str) -> bool:
    """Return True if collectors may delete an object of this name.

    It is a pack, or a file of a restore point other than its manifest.
    """
    found = parsed(name)
    return found is not None and found.kind in (PACK_KIND, MAP_KIND, FILE_KIND)


def doomed(lease_id: str, number: int) -> str:
    """Return the name of a list of objects that a session is about to delete."""
    return DOOMED_KIND.name(session=lease_id, number=str(number))


def damage_of(pack_id: bytes) -> str:
    """Return the name of the record of a pack's damage."""
    return DAMAGED_KIND.name(pack=pack_id.hex())


def verification(uuid: str, point_id: str) -> str:
    """Return the name of the last verification of a restore point."""
    return VERIFIED_KIND.name(uuid=uuid, point=point_id)


def removals(uuid: str, suffix: str) -> str:
    """Return the name of a record of removed restore points of a domain."""
    return REMOVED_KIND.name(uuid=uuid, mark=suffix)


def removals_folder(uuid: str) -> str:
    """Return the folder of the records of removed restore points of a domain."""
    return f"{REMOVED}/{check_uuid(uuid)}"


def hold(uuid: str, point_id: str, hold_id: str) -> str:
    """Return the name of a hold of a point; ``hold_id`` is 16 random hex digits."""
    return HOLD_KIND.name(uuid=uuid, point=point_id, mark=hold_id)


def holds_folder(uuid: str, point_id: str) -> str:
    """Return the folder of the holds of a restore point."""
    return f"{HOLDS}/{check_uuid(uuid)}/{check_point_id(point_id)}"


def turn(uuid: str, selection: str, slices: int) -> str:
    """Return the name of the object with the next slice of a rotation of samples."""
    return TURN_KIND.name(uuid=uuid, selection=selection, slices=str(slices))


def hooks_of_run(uuid: str, run: str, number: int) -> str:
    """Return the name of hooks of packs that a run wrote.

    ``run`` is the id of its restore point, a hyphen and 8 random hex digits of the run.
    """
    return HOOKS_KIND.name(uuid=uuid, run=run, number=str(number))


def hooks_of_compaction(run_id: str, number: int) -> str:
    """Return the name of hooks of packs that contain blocks of many domains."""
    return COMPACTION_KIND.name(session=run_id, number=str(number))


def hooks_folder(uuid: str | None) -> str:
    """Return the folder of all hooks, or of those of a domain's packs."""
    return HOOKS if uuid is None else f"{HOOKS}/{check_uuid(uuid)}"


def of_kind(found: t.Iterable[str], kind: Kind) -> t.Iterator[tuple[str, Name]]:
    """Yield the names of objects of one kind, each with its parts."""
    for name in found:
        taken = parsed(name)
        if taken is not None and taken.kind is kind:
            yield name, taken


# Objects in the making, which are not objects yet.


def _of_host(host: str) -> str:
    """Return the prefix of the names of a host's temporary files.

    Locks are certain only within one host, on any file system.
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "_", host)[:64] + "-"


def temporary(host: str, suffix: str) -> str:
    """Return the name of an object in the making; ``suffix`` is 16 random hex digits."""
    return f"{_of_host(host)}{suffix}"


def is_temporary(name: str, host: str) -> bool:
    """Return True if this host made a temporary file of this name."""
    start = _of_host(host)
    return name.startswith(start) and re.fullmatch(_RANDOM, name[len(start) :]) is not None
