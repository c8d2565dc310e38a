# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events as lines of a log, and the file they go to."""

from __future__ import annotations

import datetime
import os
import re
import resource
import shlex
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from _cbt.control import DEBUG, WARNING, Control, Event, Progress
from _cbt.errors import Refused
from _cbt.log import Log, line

NOON = datetime.datetime(2026, 11, 22, 13, 0, 0, 123456, datetime.timezone(datetime.timedelta(hours=1)))
SOURCE = "cbt_backup[4711]"


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Event("started"), "INFO cbt_backup[4711] - started"),
        (Event("begun", phase="reading", fields={"disk": "vda"}), "INFO cbt_backup[4711] reading begun disk=vda"),
        (Event("retry", DEBUG, fields={"attempt": 2, "seconds": 0.5}), "DEBUG cbt_backup[4711] - retry attempt=2 seconds=0.5"),
        (Event("e", WARNING, fields={"a": True, "b": None}), "WARNING cbt_backup[4711] - e a=true b=-"),
        (Event("e", fields={"text": "two words"}), 'INFO cbt_backup[4711] - e text="two words"'),
        (Event("e", fields={"empty": "", "dash": "-"}), 'INFO cbt_backup[4711] - e empty="" dash="-"'),
        (Event("e", fields={"path": "/a/ü.qcow2"}), "INFO cbt_backup[4711] - e path=/a/ü.qcow2"),
    ],
)  # fmt: skip
def test_an_event_becomes_a_line(event: Event, expected: str) -> None:
    assert line(event, NOON, SOURCE) == f"2026-11-22T12:00:00.123Z {expected}"


HOSTILE = [
    "web1\n2026-11-22T12:00:00.000Z INFO cbt_backup[1] - succeeded",
    "\r\x1b[2Jgone",
    "\x9b31m",
    "\u202edrawkcab",
    "\u2028line",
    'quote" changed=true',
    "back\\slash\\",
    "surrogate\udc80",
    "\x00",
    "a=b",
    "\t",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_one_field_of_one_line(text: str) -> None:
    shown = line(Event("warning", fields={"text": text, "last": 1}), NOON, SOURCE)
    assert shown.isprintable()
    shown.encode()
    *_head, field, last = shlex.split(shown)
    assert last == "last=1"
    assert field.startswith("text=")
    if text.isprintable():
        assert field == f"text={text}"


def test_a_long_text_is_cut_off() -> None:
    assert len(line(Event("warning", fields={"text": "x" * 10**6}), NOON, SOURCE)) < 5000


def _nothing(_warning: str) -> None:
    raise AssertionError(_warning)


def opened(path: Path | str, failed: Callable[[str], None] = _nothing, secret: str = "") -> Log:
    return Log(str(path), "cbt_backup", lambda text: text.replace(secret, "***") if secret else text, failed)


def test_the_file_is_created_for_its_user_alone_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "cbt.log"
    before = os.umask(0)
    try:
        opened(path).event(Event("one"))
    finally:
        os.umask(before)
    opened(path).event(Event("two", phase="reading"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    one, two = path.read_text().splitlines()
    assert re.fullmatch(rf"\S+Z INFO cbt_backup\[{os.getpid()}\] - one", one)
    assert re.fullmatch(rf"\S+Z INFO cbt_backup\[{os.getpid()}\] reading two", two)


def test_secrets_are_hidden_before_they_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "cbt.log"
    opened(path, secret='pass"\nphrase').event(Event("warning", fields={"text": 'it is pass"\nphrase.', "n": 1}))
    assert path.read_text().endswith('text="it is ***." n=1\n')


def _linked(path: Path) -> None:
    path.with_name("target").write_text("")
    path.symlink_to("target")


def _dangling(path: Path) -> None:
    path.symlink_to("nothing")


def _hard(path: Path) -> None:
    path.with_name("target").write_text("kept")
    os.link(path.with_name("target"), path)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _open_to_all(path: Path) -> None:
    path.write_text("")
    path.chmod(0o622)


def _no_folder(path: Path) -> None:
    path.parent.rmdir()


def _writable_folder(path: Path) -> None:
    path.parent.chmod(0o777)


def _sticky_folder(path: Path) -> None:
    path.parent.chmod(0o1777)


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (_linked, "symbolic links"),
        (_dangling, "symbolic links"),
        (_hard, "second name"),
        (_fifo, "No such device"),
        (_folder, "Is a directory"),
        (_open_to_all, "other users can write"),
        (_no_folder, "No such file"),
        (_writable_folder, "another user can replace files in"),
        (_sticky_folder, "another user can replace files in"),
    ],
)
def test_a_log_path_that_is_not_a_file_of_this_user_is_refused_and_left_alone(
    prepare: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "logs" / "cbt.log"
    path.parent.mkdir()
    prepare(path)
    there = sorted(path.parent.glob("*"))
    with pytest.raises(Refused, match=rf"Cannot write the log {path}: .*{why}.*\. log_path names the file\."):
        opened(path)
    assert sorted(path.parent.glob("*")) == there


def test_a_folder_above_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a").chmod(0o775 if os.getegid() else 0o777)
    if os.getegid():
        os.chown(tmp_path / "a", -1, next(group for group in os.getgroups() if group != os.getegid()))
    with pytest.raises(Refused, match=f"replace files in {tmp_path / 'a'}"):
        opened(tmp_path / "a" / "b" / "cbt.log")
    (tmp_path / "a").chmod(0o1777)  # the sticky bit keeps others from replacing b
    opened(tmp_path / "a" / "b" / "cbt.log")


@pytest.mark.parametrize("path", ["cbt.log", "", "/tmp/\x00/cbt.log"])
def test_a_path_that_names_no_file_is_refused(path: str) -> None:
    with pytest.raises(Refused, match="Cannot write the log"):
        opened(path)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes, as on a full disk: the kernel writes a part, and then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_once_and_does_not_end_the_operation(tmp_path: Path) -> None:
    path, warnings = tmp_path / "cbt.log", list[str]()
    log = opened(path, warnings.append)
    log.event(Event("first"))
    with limited(path.stat().st_size + 10):
        for _number in range(3):
            log.event(Event("lost"))
    log.event(Event("later"))
    first, part, later = path.read_text().splitlines()
    assert first.endswith("first")
    assert len(part) == 10
    assert later.endswith("later")
    (warning,) = warnings
    assert warning.startswith(f"The log {path} is incomplete: ")


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "cbt.log"
    logs = [opened(path) for _writer in range(4)]

    def write(number: int) -> None:
        for _line in range(50):
            logs[number].event(Event("e", fields={"text": str(number) * 3000}))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    texts = [each.rpartition("text=")[2] for each in path.read_text().splitlines()]
    assert sorted(texts) == sorted(str(number) * 3000 for number in range(4) for _line in range(50))


def test_progress_is_logged_periodically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    log = opened(tmp_path / "cbt.log")
    for second in range(95):
        now[0] = 100.0 + second
        log.progress(Progress("reading", "vda", second, 1000))
    lines = (tmp_path / "cbt.log").read_text().splitlines()
    assert [each.partition("reading ")[2] for each in lines] == [
        f"progress subject=vda done_bytes={second} total_bytes=1000" for second in (30, 60, 90)
    ]


def test_a_phase_reports_its_begin_its_end_and_its_failure() -> None:
    events: list[Event] = []
    control = Control(listener=events.append)
    with control.phase("reading", disk="vda") as result:
        result["read_bytes"] = 5
        with pytest.raises(ValueError), control.phase("hashing"):  # noqa: PT011
            raise ValueError
        control.detail("inside")
    control.note("outside", event="a field")
    shown = [
        (each.phase, each.level, each.name, {**each.fields, "seconds": 0} if "seconds" in each.fields else each.fields)
        for each in events
    ]
    assert shown == [
        ("reading", "info", "begun", {"disk": "vda"}),
        ("hashing", "info", "begun", {}),
        ("hashing", "warning", "failed", {"seconds": 0}),
        ("reading", "debug", "inside", {}),
        ("reading", "info", "ended", {"disk": "vda", "seconds": 0, "read_bytes": 5}),
        ("", "info", "outside", {"event": "a field"}),
    ]
    assert all(0 <= each.fields["seconds"] < 1 for each in events if "seconds" in each.fields)  # type: ignore[operator]


def test_without_a_listener_events_go_nowhere() -> None:
    control = Control()
    with control.phase("reading"):
        control.warn("nothing")
        control.progress(Progress("reading"))
