"""Options out of their range are refused where a request is made, before anything is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from _cbt.errors import Refused
from _cbt.operations.backup.run import BackupOptions
from _cbt.operations.point.new_point import StoringOptions
from _cbt.operations.restore.restore import RestoreRequest
from _cbt.operations.upkeep.retention import RetentionRequest
from _cbt.operations.upkeep.retention_rules import Rules, parse_zone
from _cbt.operations.verify.verify import VerifyRequest

WORKERS = ([None, 1, 64], [-1, 0, 65], "between 1 and 64")
COUNTS = ([-1, 0, 1], [-2, -100], "a count, 0 for no such rule or -1 for all")
RANGES: dict[str, tuple[Callable[..., Any], str, tuple[list[Any], list[Any], str]]] = {
    "backup": (BackupOptions, "workers", WORKERS),
    "copy": (StoringOptions, "workers", WORKERS),
    "restore": (lambda **given: RestoreRequest("web1", **given), "workers", WORKERS),
    "verify": (VerifyRequest, "workers", WORKERS),
    "sample": (VerifyRequest, "sample", ([1, 100], [-1, 0, 101], "between 1 and 100 percent")),
    "grace": (RetentionRequest, "grace", ([0, 86400], [-1], "a number of seconds, or 0 for none")),
    "compact_below": (
        RetentionRequest,
        "compact_below",
        ([None, 1, 100], [-1, 0, 101], "a percentage from 1 to 100"),
    ),
    **{name: (Rules, name, COUNTS) for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")},
}


@pytest.mark.parametrize("case", RANGES)
def test_a_value_out_of_range_is_refused(case: str) -> None:
    make, option, (sound, absurd, must) = RANGES[case]
    for value in sound:
        assert getattr(make(**{option: value}), option) == value
    shown = f"keep_{option}" if make is Rules else option
    for value in absurd:
        with pytest.raises(Refused) as caught:
            make(**{option: value})
        assert str(caught.value) == f"{shown} is {value}; it must be {must}."


def test_an_unknown_time_zone_is_refused() -> None:
    assert str(parse_zone("Europe/Berlin")) == "Europe/Berlin"
    for name in ("Europe/Atlantis", "../etc/passwd", ""):
        with pytest.raises(Refused, match="is not known here"):
            parse_zone(name)
