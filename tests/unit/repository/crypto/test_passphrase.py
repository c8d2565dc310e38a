# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A passphrase comes from a file that others cannot read, or from a command, and no error shows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _cbt.errors import CbtError
from _cbt.repository.crypto import passphrase
from _cbt.repository.crypto.passphrase import from_command, from_file

TEXTS = [
    (b"secret", "secret"),
    (b"secret\n", "secret"),
    (b"secret\n\n", "secret\n"),
    (b" two words \r\n", " two words \r"),
    ("pässword\n".encode(), "pässword"),
    (b"x" * 65535 + b"\n", "x" * 65535),
]
BAD_TEXTS = [
    (b"", "the passphrase is empty"),
    (b"\n", "the passphrase is empty"),
    (b"secret\xff", "a passphrase is UTF-8 text"),
    (b"secret" * 20000, "a passphrase has at most 65536 bytes"),
]


def written(folder: Path, content: bytes, mode: int = 0o600) -> str:
    path = folder / "passphrase"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(("content", "expected"), TEXTS)
def test_one_newline_at_the_end_does_not_belong_to_the_passphrase(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    path = written(tmp_path, content)
    assert from_file(path) == from_command(f"cat '{path}'") == expected


@pytest.mark.parametrize(("content", "why"), BAD_TEXTS)
def test_a_text_that_is_not_a_passphrase_is_refused_and_not_shown(content: bytes, why: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    for read, argument in ((from_file, path), (from_command, f"cat {path}")):
        with pytest.raises(CbtError, match=f"Cannot read the passphrase from .*: {why}") as refused:
            read(argument)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("mode", "allowed"), [(0o600, True), (0o400, True), (0o640, True), (0o440, True)])
def test_a_file_that_only_its_owner_can_write_and_no_stranger_can_read_is_read(
    mode: int, allowed: bool, tmp_path: Path
) -> None:
    assert (from_file(written(tmp_path, b"secret", mode)) == "secret") is allowed


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601, 0o660, 0o620, 0o666, 0o777])
def test_a_file_that_others_can_read_or_change_is_refused(mode: int, tmp_path: Path) -> None:
    with pytest.raises(CbtError, match="Set its mode to 0600") as refused:
        from_file(written(tmp_path, b"secret", mode))
    assert "secret" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_or_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, b"secret")
    (tmp_path / "link").symlink_to(path)
    assert from_file(f"{tmp_path}/link") == "secret"
    os.lchown(tmp_path / "link", 65534, 65534)
    with pytest.raises(CbtError, match="a link of another user"):
        from_file(f"{tmp_path}/link")
    os.chown(path, 65534, 65534)
    with pytest.raises(CbtError, match="it belongs to user 65534"):
        from_file(path)


def test_a_path_that_is_not_a_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, why in {
        "passphrase": "it is not an absolute path",
        str(tmp_path / "none"): "No such file or directory",
        str(tmp_path / "pipe"): "it is not a regular file",
        str(tmp_path): "it is not a regular file",
        "/dev/zero": "it is not a regular file",
        "/a\0b": "embedded null byte",
    }.items():
        with pytest.raises(CbtError, match=why):
            from_file(path)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("echo 'a", "No closing quotation"),
        ("/none/program secret", "program cannot be run: No such file or directory"),
        ("/etc/passwd", "passwd cannot be run: Permission denied"),
        ("sh -c 'echo secret; exit 3'", "sh failed: exit status 3"),
        ("sh -c 'echo secret; echo the vault is locked >&2; exit 1'", "sh failed: the vault is locked"),
        ("sh -c 'echo secret; echo not secret >&2; exit 1'", r"sh failed: not \*{8}"),
        ("false", "false failed: exit status 1"),
    ],
)
def test_a_command_that_fails_is_named_without_its_output(command: str, why: str) -> None:
    with pytest.raises(CbtError, match=why) as refused:
        from_command(command)
    assert "secret" not in str(refused.value)


def test_a_command_runs_without_a_shell_in_the_environment_of_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "from the environment")
    assert from_command("printenv VAULT_TOKEN") == "from the environment"
    assert from_command("echo '$VAULT_TOKEN' | cat; `id`") == "$VAULT_TOKEN | cat; `id`"


def test_a_command_gets_no_input_and_ends_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CbtError, match="the passphrase is empty"):
        from_command("cat")
    monkeypatch.setattr(passphrase, "_TIMEOUT", 0.05)
    with pytest.raises(CbtError, match="sleep did not end within 0 s"):
        from_command("sleep 600")
