"""The grammar of names: every name that is built is parsed again, and everything else is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import UUID, point_id
from store_contract import BAD_NAMES

from _cbt.errors import DamagedObject
from _cbt.repository.format import names

FORMAT = Path(__file__).resolve().parents[4] / "docs" / "repository-format.md"
PACK = bytes(range(16))
SESSION = "0123456789abcdef"

BUILT = {
    names.pack(PACK): names.PACK_KIND,
    names.manifest(UUID, point_id(1)): names.MANIFEST_KIND,
    names.point_file(UUID, point_id(1), names.map_file("vda")): names.MAP_KIND,
    names.point_file(UUID, point_id(1), names.map_file("vda", "0123abcd")): names.MAP_KIND,
    names.point_file(UUID, point_id(1), names.map_file("vda", "2")): names.MAP_KIND,
    names.point_file(UUID, point_id(1), "domain.xml"): names.FILE_KIND,
    names.point_file(UUID, point_id(1), "domain.xml-2"): names.FILE_KIND,
    names.point_file(UUID, point_id(1), "nvram.0"): names.FILE_KIND,
    names.lease(SESSION): names.LEASE_KIND,
    names.draft(SESSION, UUID, point_id(1), SESSION): names.DRAFT_KIND,
    names.trash_entry(UUID, point_id(1), SESSION): names.TRASH_KIND,
    names.announcement(names.pack(PACK)): names.CONDEMNED_PACK_KIND,
    names.announcement(names.point_file(UUID, point_id(1), "vda.map")): names.CONDEMNED_FILE_KIND,
    names.doomed(SESSION, 3): names.DOOMED_KIND,
    names.damage_of(PACK): names.DAMAGED_KIND,
    names.verification(UUID, point_id(1)): names.VERIFIED_KIND,
    names.turn(UUID, "all", 50): names.TURN_KIND,
    names.removals(UUID, SESSION): names.REMOVED_KIND,
    names.hold(UUID, point_id(1), SESSION): names.HOLD_KIND,
    names.hooks_of_run(UUID, point_id(1), 0): names.HOOKS_KIND,
    names.hooks_of_run(UUID, f"{point_id(1)}-0123abcd", 12): names.HOOKS_KIND,
    names.hooks_of_compaction(SESSION, 0): names.COMPACTION_KIND,
    names.CONFIGURATION: names.REPOSITORY_KIND,
    names.RECORD: names.RECORD_KIND,
}


def test_a_name_of_every_kind_is_parsed_into_the_parts_it_was_built_from() -> None:
    assert set(BUILT.values()) == set(names.KINDS)
    for name, kind in BUILT.items():
        taken = names.parsed(name)
        assert taken is not None and taken.kind is kind
        if "two" not in taken.parts:
            assert kind.name(**taken.parts) == name
        folder = name.rpartition("/")[0]
        while folder:
            assert names.is_folder(folder), folder
            folder = folder.rpartition("/")[0]


def test_parsed_names_return_their_parts() -> None:
    def taken(name: str) -> names.Name:
        found = names.parsed(name)
        assert found is not None
        return found

    assert taken(names.pack(PACK)).pack == taken(names.damage_of(PACK)).pack == PACK
    for name in (
        names.draft(SESSION, UUID, point_id(1), SESSION),
        names.trash_entry(UUID, point_id(1), SESSION),
        names.manifest(UUID, point_id(1)),
    ):
        assert taken(name).point == (UUID, point_id(1))
        assert names.manifest_kept_by(name) == names.manifest(UUID, point_id(1))
    for name in (names.pack(PACK), names.point_file(UUID, point_id(1), "vda.map")):
        assert names.announced(names.announcement(name)) == name
        assert names.is_collectable(name)
    for name in (names.manifest(UUID, point_id(1)), names.lease(SESSION), "x", ""):
        assert not names.is_collectable(name)
        with pytest.raises(DamagedObject, match="cannot be announced"):
            names.announcement(name)


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_an_invalid_name_is_not_parsed(name: str) -> None:
    assert names.parsed(name) is None and not names.is_object(name)
    for refuses in (names.check_object, names.largest, names.manifest_kept_by):
        with pytest.raises(DamagedObject):
            refuses(name)


@given(st.sampled_from(sorted(BUILT)), st.data())
def test_a_name_with_one_character_added_or_removed_leads_to_no_other_object(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name)))
    changed = data.draw(
        st.sampled_from(
            [name[:place] + odd + name[place:] for odd in ("/", "..", "/../", "\0", "\n", " ", "\u0660")]
            + [name[:place]]
        )
    )
    if names.is_object(changed):
        assert all(part not in ("", ".", "..") for part in changed.split("/"))
        assert changed.isascii() and changed.isprintable() and "//" not in changed


@pytest.mark.parametrize("bad", ["", "..", "a/b", "a\0", "x" * 1000, None, 1, [], b"vda"])
def test_invalid_parts_of_any_kind_are_refused(bad: object) -> None:
    checks = (
        names.check_uuid,
        names.check_point_id,
        names.check_target,
        names.check_file_name,
        names.check_repository_id,
    )
    for check in checks:
        with pytest.raises(DamagedObject, match="is not "):
            check(bad)
    for build in (
        names.lease,
        lambda part: names.manifest(part, point_id(1)),
        lambda part: names.trash_entry(UUID, point_id(1), part),
    ):
        with pytest.raises(DamagedObject, match="can be called"):
            build(bad)  # type: ignore[no-untyped-call]


def test_a_message_shows_a_name_as_one_short_line() -> None:
    for odd in ("a\nb", "\x1b[2J", "x" * 100_000, "\udcff", "", None, [1]):
        assert names.shown(odd).isprintable() and len(names.shown(odd)) < 300


def test_the_format_document_states_the_limits() -> None:
    text = re.sub(r"\s+", " ", FORMAT.read_text(encoding="utf-8"))
    section = text[text.index("### Maximum sizes") : text.index("## Sharing a repository")]
    told = dict(re.findall(r"\| ([^|]+?) \| (\d+ [KM]iB)", section))
    sizes = {
        f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
        for size in (kind.largest for kind in names.KINDS)
    }
    assert set(told.values()) == sizes
    expected = {
        "pack": names.PACK_KIND,
        "extent map": names.MAP_KIND,
        "manifest, draft, trash entry, deletion list": names.MANIFEST_KIND,
        "hold": names.HOLD_KIND,
        "file of a restore point": names.FILE_KIND,
        "hooks": names.HOOKS_KIND,
        "record of damage": names.DAMAGED_KIND,
        "`repository.json`, record of removed points": names.REPOSITORY_KIND,
        "all others": names.LEASE_KIND,
    }
    assert {what: names_of(kind.largest) for what, kind in expected.items()} == told


def names_of(size: int) -> str:
    """A size as the document writes it."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
