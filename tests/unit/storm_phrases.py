# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens in a storm more often than by chance: where a session halts, and what others do meanwhile."""

from __future__ import annotations

from typing import Any

from storm_damage import DAMAGE, LOSS

GRACE = 86400.0
NIGHT = GRACE + 13000
SPANS = (1, 60, 200, 300, 800, 1000, 1700, 1900, 3600, 10000, 12500, 13000, 43000, 86000, 87000, 100000)
END, DEATH = "the end", "its death"  # of the session: no request is called so
TURNS = FIRST, SECOND, THIRD = "the first", "the second", "the third"  # of the sessions of a phrase that halted
# Of all: their leases are renewed from now on, but for now and then; their clocks are as far ahead as may be, or right again;
# the grace period is short.
ALIVE, AHEAD, BACK, SHORT = "all renew", "all ahead", "all set back", "all short"

KINDS = (  # what is done in a storm
    ("backup", "move", "move", "remove", "undelete", "collect", "collect", "hold"),
    ("backup", "collect"),
    ("move", "move", "collect"),
    ("remove", "copy", "copy", "move", "collect"),
    ("move", "remove"),
    ("move", "remove", "undelete"),
    ("remove", "undelete", "collect"),
    ("move", "move", "remove", "hold"),
)

_MANIFEST = "points/*/manifest.json"
_READ, _PUT, _DELETE = f"get {_MANIFEST}", f"put {_MANIFEST}", f"delete {_MANIFEST}"
_EXCHANGE = "swap repository.json"
# Requests, as they are halted at, before or after which much depends on what others do.
_PUBLISHING = (
    "put points/*.map",
    "put drafts/*",
    "done put drafts/*",
    "done list condemned",
    "done size packs/*",
    "done size points/*.map",
    *(_PUT,) * 3,
    f"done {_PUT}",
)
SETTLING = (  # of a session that makes good what a late manifest did
    _PUT,
    _PUT,
    f"done {_PUT}",
    f"done {_READ}",
    "list trash/*",
    "done list trash/*",
    "done list removed/*",
    "done list condemned",
    "put trash/*",
    "list holds/*",
    _DELETE,
)
WINDOWS: dict[str, tuple[str, ...]] = {
    "backup": _PUBLISHING,
    **dict.fromkeys(("move", "merge"), (*_PUBLISHING, _READ, f"done {_READ}", "list trash/*", "list removed/*")),
    "copy": (*_PUBLISHING, f"done {_READ}"),
    "undelete": (*_PUBLISHING, f"size {_MANIFEST}", "delete trash/*"),
    "remove": (
        _READ,
        "put trash/*",
        "done put trash/*",
        "list holds/*",
        *(_DELETE,) * 3,
        f"done {_DELETE}",
    ),
    "hold": ("put holds/*", "done put holds/*", "list condemned", "done size packs/*", _READ),
    **dict.fromkeys(
        ("collect", "retain", "compact"),
        (
            "put doomed/*",
            "done put doomed/*",
            "list points",
            "done list points",
            "list holds",
            "list trash",
            "done list trash",
            "done list trash",
            "delete packs/*",
            "delete points/*",
            "delete trash/*",
            "delete doomed/*",
        ),
    ),
    "keys": (_EXCHANGE, "get repository.json"),
}

_SOON = (1, 60, 200, 800)
_LOOKS = ("done list condemned", "done size packs/*", _PUT)
_LISTED = ("list points", "done list points", "done list trash", "delete packs/*")
_NAMED = (("backup", "move", "move"), "done put drafts/*")
_REMOVES = ("done put trash/*", "done list holds/*")
_NIGHTS = (NIGHT, "collect", NIGHT, "collect")
_HUNG = ("move", _PUT, *_NIGHTS)
# A collector dies once it has deleted packs and no maps.
_HALF = (NIGHT, "collect", NIGHT, "collect", "delete points/*", DEATH)
_AGAIN = (FIRST, _PUT, "move", *_HALF)
# A collector deletes what a late manifest names while another one deletes what it replaced.
_LATE_DELETION = (
    *("collect", "delete packs/*", FIRST, f"done {_PUT}", "collect", 650),
    *("collect", "put doomed/*", SECOND, "delete points/*", THIRD, END, SECOND, END, FIRST, END),
)
# A late session ends while a collector has listed objects for deletion and not deleted them yet.
_BETWEEN = ("collect", NIGHT, "collect", "put doomed/*", _LISTED, FIRST, END, SECOND, END)
_DELAYED = ("collect", "put doomed/*", "done list trash", 25000)
# A session that names packs which are older than it hangs until they are deleted.
_MERGED = ("merge", _PUT, *_NIGHTS)
_STORES = (("backup", "copy"), "put packs/*", BACK, (60, 800))
# What matters only if several clocks part, and is said more often for that.
_RARE: tuple[tuple[Any, ...], ...] = (
    # A collector is about to delete what another one reprieves, because a session names it.
    ("collect", "put doomed/*", "done list trash", (1, 300, 25000), *_NAMED, "collect", SECOND, END, FIRST, END),
    ("collect", "put doomed/*", (1, 300), *_NAMED, "collect", SECOND, _PUT, FIRST, END, SECOND, END),
    # A point is removed twice at once, and brought back.
    ("remove", _REMOVES, "remove", (1, 300, 10000, 13000), "undelete", FIRST, END),
)
# A kind of session that halts at a request, or that does all of its work; seconds that pass; of several, any. A request that
# follows is where the session halts next that began last, or that is named before it. What halts at the end of the phrase goes on
# by chance.
PHRASES: tuple[tuple[Any, ...], ...] = (
    *_RARE * 2,
    # Others move and delete what a session read, or stored, before its draft is there.
    ("backup", ("put points/*.map", "put drafts/*", "put drafts/*"), *_NIGHTS, FIRST, END),
    ("move", ("put points/*.map", "put drafts/*"), "move", *_NIGHTS, FIRST, END),
    ("move", ("put points/*.map", "put drafts/*", "done list condemned"), "move", FIRST, END),
    (("backup", "move", "move"), _LOOKS[:2], *_NIGHTS, FIRST, END),
    *((("backup", "move"), "done size points/*.map", *_NIGHTS, FIRST, END),) * 2,
    (BACK, ("backup", "move"), "done put drafts/*", (1, 60, 800), AHEAD, "collect"),
    (BACK, ("backup", "move"), "done put drafts/*", AHEAD, "collect"),
    # A session that is at work for days stores objects, and gives signs of life.
    *((ALIVE, AHEAD, *_STORES, FIRST, ("put points/*.map", "put drafts/*"), *_NIGHTS, "collect"),) * 2,
    (ALIVE, *_STORES, FIRST, "put points/*.map", (1900, 3600), "collect", *_NIGHTS, "collect"),
    # A manifest hangs across a grace period, and the session is held up again while it looks at what was lost.
    (*_HUNG, FIRST, SETTLING, ("move", "remove", "hold"), NIGHT, "collect"),
    (*_HUNG, FIRST, f"done {_PUT}", ("move", "hold"), FIRST, END),
    *((ALIVE, "move", *_HUNG, FIRST, f"done {_PUT}", "move", FIRST, END),) * 2,
    *((*_HUNG, FIRST, _PUT, "remove", FIRST, END),) * 2,
    ("move", _PUT, *_HALF, FIRST, _PUT, *_NIGHTS, FIRST, END),
    ("move", _PUT, *_HALF, FIRST, f"done {_PUT}", ("move", "hold"), FIRST, END),
    *(("move", _PUT, *_HALF, *_AGAIN, *_AGAIN, *_AGAIN, FIRST, END),) * 2,
    (
        "move",
        _PUT,
        NIGHT,
        "collect",
        "move",
        NIGHT,
        *_BETWEEN,
    ),
    *((SHORT, "move", _PUT, 13000, "collect", 1000, *_LATE_DELETION),) * 2,
    (("backup", "copy"), _PUT, *_NIGHTS, FIRST, END),
    ("move", _PUT, "remove", (60, 13000, NIGHT), FIRST, SETTLING, ("remove", "undelete"), NIGHT),
    *(("move", _PUT, "remove", *_NIGHTS, FIRST, END, "collect"),) * 2,
    ("move", _PUT, "remove", NIGHT, "collect", FIRST, END),
    # A point is removed, brought back and moved beside a session that moves it, or that brings it back late.
    ("move", f"done {_PUT}", "remove", (60, NIGHT), ("undelete", "copy"), "move", FIRST, END),
    ("remove", "undelete", _PUT, NIGHT, "collect", FIRST, END, "move"),
    # A removal is held up, and its entry grows old while the point is moved, held or brought back.
    ("remove", ("done put trash/*", "list holds/*"), (13000, NIGHT), ("undelete", "collect"), NIGHT, "collect"),
    ("remove", ("put trash/*", "list holds/*"), ("hold", "move", "remove"), *_NIGHTS, FIRST, END, "collect"),
    ("remove", "put trash/*", "move", *_NIGHTS, FIRST, END, "collect"),
    ("remove", _DELETE, NIGHT, "collect", "move", *_NIGHTS, FIRST, END),
    (
        "remove",
        _DELETE,
        NIGHT,
        "collect",
        "move",
        *_BETWEEN,
        "collect",
    ),
    # A point is brought back beside a removal.
    ("remove", "undelete", _LOOKS, _SOON, "remove", NIGHT, "collect"),
    # A collector beside a session that looks, or that begins between its list and its deletions.
    (("backup", "move", "undelete"), _LOOKS, _SOON, "collect"),
    ("collect", "put doomed/*", _LISTED, _SOON, "collect", ("backup", "move"), NIGHT),
    ("collect", "put doomed/*", _LISTED, (1900, 13000), "collect", ("backup", "move"), NIGHT),
    # A removal ends late.
    ("remove", _REMOVES, NIGHT, "collect", FIRST, f"done {_DELETE}", DEATH),
    (SHORT, "remove", _REMOVES, 800, "collect", FIRST, END),
    ("remove", _DELETE, NIGHT, "collect", FIRST, "put trash/*", *_NIGHTS, FIRST, END, "collect"),
    # A point is brought back beside a session that moves it, or copied again long after it was removed.
    ("move", _PUT, "remove", "undelete", _PUT, FIRST, f"done {_PUT}", SECOND, END, FIRST, END),
    ("remove", NIGHT, "collect", "copy", "move"),
    ("remove", "undelete", _PUT, "copy", *_NIGHTS, FIRST, END),
    ("remove", "copy", (_READ, f"done {_READ}"), *_NIGHTS, FIRST, END),
    # What a dead session leaves.
    (("backup", "move"), ("done put drafts/*", "done put points/*.map"), DEATH, NIGHT, "collect"),
    (("backup", "move"), "done put drafts/*", DEATH, NIGHT, "collect"),
    ("collect", ("done put doomed/*", "delete packs/*"), DEATH, NIGHT, "collect"),
    # Key slots are added and removed at once.
    ("keys", _EXCHANGE, "keys", FIRST, END),
    ("keys", "keys", ("get repository.json", _EXCHANGE), "keys", _EXCHANGE, FIRST, END, SECOND, END),
    # A held point meets rules and compaction, or its hold cannot be read, or its map is gone.
    ("hold", ("retain", "move"), "retain", *_NIGHTS),
    ("backup", "hold", ("compact", "move", "merge"), "compact", *_NIGHTS),
    ("hold", DAMAGE, ("retain", "remove", "move"), ("retain", "collect", "compact"), *_NIGHTS),
    ("hold", "move", "move", LOSS, *_NIGHTS),
    # Another session moves other blocks of a point whose late manifest names a pack that is gone.
    *((ALIVE, "move", "put points/*.map", DEATH, "move", 13000, *_MERGED, SECOND, f"done {_PUT}", "move", SECOND, END),)
    * 4,
    # A held point is moved or removed, and a hold comes between the looks of a session, or loses what it was to keep.
    ("hold", ("move", "remove"), *_NIGHTS),
    ("hold", ("put holds/*", "done put holds/*", "list condemned"), ("move", "remove"), *_NIGHTS),
    ("remove", ("put trash/*", "done list holds/*", _DELETE), "hold", FIRST, END),
    ("hold", ("put holds/*", "done put holds/*"), ("remove", "move"), FIRST, END),
    ("remove", _DELETE, "hold", FIRST, f"done {_DELETE}", DEATH, *_NIGHTS),
    (
        "move",
        _PUT,
        "remove",
        _DELETE,
        FIRST,
        f"done {_PUT}",
        "hold",
        SECOND,
        f"done {_DELETE}",
        DEATH,
        FIRST,
        END,
        *_NIGHTS,
    ),
    # What it takes several coincidences to show.
    *(("move", _PUT, *_HALF, *_AGAIN, *_AGAIN, *_AGAIN, FIRST, END),) * 6,
    *(("move", _PUT, NIGHT, "collect", "move", NIGHT, *_BETWEEN),) * 6,
    *(("remove", NIGHT, "collect", "copy", "move"),) * 4,
    *((BACK, ("backup", "move"), "done put drafts/*", AHEAD, "collect"),) * 2,
    *((*_HUNG, FIRST, _PUT, "remove", FIRST, END),) * 2,
    *((*_HUNG, FIRST, f"done {_PUT}", "hold", FIRST, END),) * 2,
    # A point is brought back while clocks part, or copied although it is there.
    *((BACK, "remove", (60, 800), AHEAD, "undelete"),) * 2,
    *(("copy", "copy"),) * 2,
    # What is said above, in the form that shows most.
    *(("move", f"done {_PUT}", "remove", 60, "copy", "move", FIRST, END),) * 2,
    *(("hold", "put holds/*", "remove", FIRST, END),) * 2,
    *(("move", "done put drafts/*", DEATH),) * 2,
    *((*_DELAYED, ("backup", "move"), "done put drafts/*", "collect", SECOND, END, FIRST, END),) * 2,
    *(("hold", "move", "move", LOSS, *_NIGHTS),) * 2,
    *(("move", "done size points/*.map", *_NIGHTS, FIRST, END),) * 2,
)
