# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NBD server, asked by libnbd, and by clients that keep to no protocol."""

from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest
from lab.certificates import Authority

from _cbt.blocks.server import listener
from _cbt.blocks.server.disk import Disk
from _cbt.blocks.server.listener import Listener, ServerOptions, tls_context
from _cbt.blocks.server.overlay import Overlay, Storage
from _cbt.errors import DamagedObject, Refused
from _cbt.grid import BLOCK_SIZE

BLOCKS = 40
SIZE = BLOCKS * BLOCK_SIZE - 512
DAMAGED = 30  # the block that cannot be read


class PatternDisk:
    """A disk of random bytes in which every fifth block is zero. A test may halt its reads."""

    def __init__(self) -> None:
        rng = random.Random(7)
        self.content = b"".join(
            bytes(BLOCK_SIZE) if block % 5 == 0 else rng.randbytes(BLOCK_SIZE) for block in range(BLOCKS)
        )[:SIZE]
        self.size = SIZE
        self.damaged: int | None = None
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Semaphore(0)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        for start, end in self._parts(offset, length):
            yield end - start, start // BLOCK_SIZE % 5 != 0

    def read(self, offset: int, length: int) -> Iterator[tuple[int, list[bytes]]]:
        self.waiting.release()
        self.open.wait(60)
        for start, end in self._parts(offset, length):
            if start // BLOCK_SIZE == self.damaged:
                raise DamagedObject(f"block {self.damaged} is damaged")
            yield end - start, [] if start // BLOCK_SIZE % 5 == 0 else [self.content[start:end]]

    @staticmethod
    def _parts(offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        while offset < end:
            stop = min(end, (offset // BLOCK_SIZE + 1) * BLOCK_SIZE)
            yield offset, stop
            offset = stop


class Server:
    """A server of some disks at a Unix socket; ``said`` is what it reported."""

    def __init__(self, path: Path, exports: dict[str, Disk], tls: ssl.SSLContext | None = None) -> None:
        self.path, self.said = str(path), list[str]()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen(64)
        self._listener = Listener(self._listening, exports, ServerOptions(2, tls, self.said.append))
        self._thread = threading.Thread(target=self._listener.serve)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        for _client in range(listener.MOST_CLIENTS):
            assert self._listener._clients.acquire(timeout=30), "a client is still served"

    def client(self, name: str = "vda", structured: bool = True) -> nbd.NBD:
        handle = nbd.NBD()
        handle.set_export_name(name)
        handle.set_request_structured_replies(structured)
        if structured:
            handle.add_meta_context("base:allocation")
        handle.connect_unix(self.path)
        return handle

    def raw(self) -> socket.socket:
        """A connection that has read the greeting."""
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(30)
        made.connect(self.path)
        assert received(made, 18)[:16] == b"NBDMAGICIHAVEOPT"
        made.sendall(struct.pack(">I", 3))
        return made


def received(connection: socket.socket, length: int) -> bytes:
    """So many bytes, fewer if the other side closes."""
    data = b""
    while len(data) < length:
        with contextlib.suppress(ConnectionResetError):
            if part := connection.recv(length - len(data)):
                data += part
                continue
        break
    return data


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def reply(connection: socket.socket) -> tuple[int, bytes]:
    """Kind and data of the reply to an option; kind -1 if the connection is closed."""
    head = received(connection, 20)
    if len(head) < 20:
        return -1, b""
    _magic, _option, kind, length = struct.unpack(">QIII", head)
    return kind, received(connection, length)


@pytest.fixture
def disk() -> PatternDisk:
    return PatternDisk()


@pytest.fixture
def server(tmp_path: Path, disk: PatternDisk) -> Iterator[Server]:
    made = Server(tmp_path / "nbd.sock", {"vda": disk, "vdb": disk})
    yield made
    disk.open.set()
    made.close()


@pytest.fixture
def writable(tmp_path: Path, disk: PatternDisk) -> Iterator[Server]:
    overlay = Overlay(disk, Storage(str(tmp_path), SIZE))
    made = Server(tmp_path / "writable.sock", {"vda": overlay})
    yield made
    made.close()


def ranges(count: int, seed: int = 1) -> Iterator[tuple[int, int]]:
    rng = random.Random(seed)
    yield from ((0, SIZE), (SIZE - 1, 1), (BLOCK_SIZE - 1, 2), (4 * BLOCK_SIZE + 5, 2 * BLOCK_SIZE))
    for _number in range(count):
        offset = rng.randrange(SIZE)
        yield offset, min(rng.choice([1, 512, 4096, BLOCK_SIZE, rng.randrange(1, SIZE)]), SIZE - offset)


@pytest.mark.parametrize("structured", [True, False])
def test_a_client_reads_what_is_on_the_disk(server: Server, disk: PatternDisk, structured: bool) -> None:
    client = server.client(structured=structured)
    assert client.get_size() == SIZE and client.is_read_only() and client.can_multi_conn()
    assert [client.get_block_size(each) for each in range(3)] == [1, BLOCK_SIZE, 32 << 20]
    for offset, length in ranges(40):
        assert client.pread(length, offset) == disk.content[offset : offset + length]
        if structured:
            whole = client.pread_structured(length, offset, lambda *_piece: 0, nbd.CMD_FLAG_DF)
            assert whole == disk.content[offset : offset + length]
    client.shutdown()


def test_block_status_hides_no_data(server: Server, disk: PatternDisk) -> None:
    client = server.client()
    for offset, length in ranges(20):
        for flags in (0, nbd.CMD_FLAG_REQ_ONE):
            found: list[int] = []
            client.block_status(length, offset, lambda _c, _o, entries, _e, into=found: into.extend(entries), flags)
            at = offset
            for size, kind in zip(found[::2], found[1::2]):
                assert kind in (0, 3)
                assert kind == 0 or not disk.content[at : at + size].strip(b"\0")
                at += size
            assert at == offset + length or (flags and len(found) == 2)
    client.shutdown()


def test_each_export_has_a_name(server: Server) -> None:
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_unix(server.path)
    found: list[str] = []
    handle.opt_list(lambda name, _description: found.append(name))
    assert found == ["vda", "vdb"]
    handle.set_export_name("")
    with pytest.raises(nbd.Error):  # two of them: neither is the default
        handle.opt_go()
    handle.set_export_name("vdb")
    handle.opt_go()
    assert handle.get_size() == SIZE
    handle.shutdown()


@pytest.mark.parametrize("structured", [True, False])
def test_damage_is_an_error_for_what_contains_it(server: Server, disk: PatternDisk, structured: bool) -> None:
    disk.damaged = DAMAGED + 1
    client = server.client(structured=structured)
    bad = range(disk.damaged * BLOCK_SIZE, (disk.damaged + 1) * BLOCK_SIZE)
    for offset, length in ranges(40, seed=2):
        if offset < bad.stop and offset + length > bad.start:
            with pytest.raises(nbd.Error) as raised:
                client.pread(length, offset)
            assert raised.value.errnum == errno.EIO
        else:
            assert client.pread(length, offset) == disk.content[offset : offset + length]
    assert "block 31 is damaged" in server.said
    client.shutdown()


def test_the_place_of_an_error_is_named(server: Server, disk: PatternDisk) -> None:
    disk.damaged = 6
    client = server.client()
    pieces: list[tuple[int, int]] = []

    def piece(data: bytes, offset: int, kind: int, _error: object) -> int:
        pieces.append((offset, kind))
        return 0

    with pytest.raises(nbd.Error):
        client.pread_structured(4 * BLOCK_SIZE, 4 * BLOCK_SIZE, piece)
    assert pieces[-1] == (6 * BLOCK_SIZE, nbd.READ_ERROR)
    assert [offset for offset, _kind in pieces[:-1]] == [4 * BLOCK_SIZE, 5 * BLOCK_SIZE]
    client.shutdown()


def test_a_read_only_export_takes_no_writes(server: Server, disk: PatternDisk) -> None:
    client = server.client()
    client.set_strict_mode(0)
    before = disk.content
    for refused in (
        lambda: client.pwrite(b"x" * 4096, 0),
        lambda: client.zero(4096, 0),
        lambda: client.trim(4096, 0),
    ):
        with pytest.raises(nbd.Error) as raised:
            refused()
        assert raised.value.errnum == errno.EPERM
    assert client.pread(4096, BLOCK_SIZE) == before[BLOCK_SIZE : BLOCK_SIZE + 4096]
    client.shutdown()


def test_requests_beyond_the_disk_are_errors_and_the_connection_goes_on(server: Server, disk: PatternDisk) -> None:
    client = server.client()
    client.set_strict_mode(0)
    for refused in (
        lambda: client.pread(4096, SIZE),
        lambda: client.pread(4096, 1 << 62),
        lambda: client.pread(1, SIZE),
        lambda: client.block_status(4096, SIZE, lambda *_: 0),
    ):
        with pytest.raises(nbd.Error):
            refused()
    assert client.pread(1, SIZE - 1) == disk.content[-1:]
    client.shutdown()


def test_clients_that_are_killed_with_requests_in_flight_harm_nobody(server: Server, disk: PatternDisk) -> None:
    survivor = server.client()
    disk.open.clear()
    killed = []
    for number in range(12):
        connection = server.raw()
        connection.sendall(option(8) + option(7, struct.pack(">I", 3) + b"vda" + struct.pack(">H", 0)))
        assert [reply(connection)[0] for _reply in range(4)] == [1, 3, 3, 1]
        for request in range(20):
            connection.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, request, number * 4096, 1 << 20))
        disk.waiting.acquire()
        killed.append(connection)
    for connection in killed:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    disk.open.set()
    assert survivor.pread(SIZE, 0) == disk.content
    assert server.client().pread(SIZE, 0) == disk.content
    survivor.shutdown()


def test_a_client_that_does_not_read_holds_up_no_other(server: Server, disk: PatternDisk) -> None:
    lazy = server.client()
    buffers = [nbd.Buffer(SIZE) for _request in range(64)]
    for buffer in buffers:
        lazy.aio_pread(buffer, 0)  # and never polls
    other = server.client()
    assert other.pread(SIZE, 0) == disk.content
    other.shutdown()


NAME = struct.pack(">I", 3) + b"vda"
RUBBISH = {
    "no option": b"\0" * 64,
    "a longer option than any": b"IHAVEOPT" + struct.pack(">II", 7, 1 << 31),
    "an export name that does not exist": option(1, b"nothing"),
    "an export name of other bytes": option(1, b"\xff\xfe"),
    "half an option": b"IHAVE",
    "options without end": option(3) * 300,
}
ANSWERED = {
    "an unknown option": (option(99), 1 << 31 | 1),
    "TLS that is not there": (option(5), 1 << 31 | 1),
    "a list with data": (option(3, b"x"), 1 << 31 | 3),
    "structured replies with data": (option(8, b"x"), 1 << 31 | 3),
    "information on nothing": (option(6), 1 << 31 | 3),
    "a name that is longer than its option": (option(7, struct.pack(">I", 1 << 31) + b"vda"), 1 << 31 | 3),
    "an unknown export": (option(7, struct.pack(">I", 1) + b"x" + bytes(2)), 1 << 31 | 6),
    "a context without structured replies": (option(10, NAME + struct.pack(">I", 0)), 1 << 31 | 3),
}


@pytest.mark.parametrize("sent", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_closes_a_connection_and_no_other(server: Server, disk: PatternDisk, sent: bytes) -> None:
    connection = server.raw()
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    while received(connection, 1 << 16):
        pass
    connection.close()
    client = server.client()
    assert client.pread(4096, BLOCK_SIZE) == disk.content[BLOCK_SIZE : BLOCK_SIZE + 4096]
    client.shutdown()


@pytest.mark.parametrize(("sent", "answer"), ANSWERED.values(), ids=ANSWERED)
def test_an_option_that_cannot_be_granted_is_answered(server: Server, sent: bytes, answer: int) -> None:
    with server.raw() as connection:
        connection.sendall(sent)
        assert reply(connection)[0] == answer
        connection.sendall(option(2))
        assert reply(connection)[0] == 1
        assert reply(connection)[0] == -1


@pytest.mark.parametrize(
    "contexts",
    [struct.pack(">I", 1 << 31), struct.pack(">II", 1, 1 << 31), struct.pack(">II", 1, 4) + b"ab", b"", b"\0"],
)
def test_contexts_of_a_wrong_form_are_refused(server: Server, contexts: bytes) -> None:
    with server.raw() as connection:
        connection.sendall(option(8) + option(10, NAME + contexts))
        assert reply(connection)[0] == 1
        assert reply(connection)[0] == 1 << 31 | 3


def test_a_write_that_is_longer_than_any_ends_the_connection(writable: Server) -> None:
    connection = writable.raw()
    connection.sendall(option(7, NAME + struct.pack(">H", 0)))
    while reply(connection)[0] == 3:
        pass
    connection.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, (32 << 20) + 1))
    assert select.select([connection], [], [], 30)[0]
    assert received(connection, 1) == b""
    connection.close()


def test_private_writes_are_read_by_all_clients_and_the_disk_stays_as_it_was(
    writable: Server, disk: PatternDisk
) -> None:
    rng, truth, before = random.Random(3), bytearray(disk.content), disk.content
    one, other = writable.client(), writable.client()
    assert not one.is_read_only() and one.can_flush() and one.can_trim() and one.can_zero()
    for number in range(60):
        offset = rng.choice([rng.randrange(SIZE), rng.randrange(BLOCKS) * BLOCK_SIZE])
        length = min(rng.choice([1, 512, 4096, BLOCK_SIZE, rng.randrange(1, 5 * BLOCK_SIZE)]), SIZE - offset)
        kind = rng.choice(["write", "write", "zero", "trim"])
        data = rng.randbytes(length) if kind == "write" else bytes(length)
        if kind == "write":
            one.pwrite(data, offset)
        else:
            (one.zero if kind == "zero" else one.trim)(length, offset)
        truth[offset : offset + length] = data
        if number % 10 == 0:
            one.flush()
            assert other.pread(SIZE, 0) == truth
    assert other.pread(SIZE, 0) == truth
    found: list[int] = []
    other.block_status(SIZE, 0, lambda _c, _o, entries, _e: found.extend(entries))
    at = 0
    for size, kind in zip(found[::2], found[1::2]):
        assert kind == 0 or not truth[at : at + size].strip(b"\0")
        at += size
    assert at == SIZE
    assert disk.content == before
    one.set_strict_mode(0)
    with pytest.raises(nbd.Error) as raised:
        one.pwrite(bytes(2), SIZE - 1)
    assert raised.value.errnum == errno.ENOSPC
    for client in (one, other):
        client.shutdown()


def test_a_full_disk_is_an_error_of_the_write(writable: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    client = writable.client()
    with monkeypatch.context() as changed:
        changed.setattr("_cbt.blocks.server.overlay.os.pwrite", full)
        with pytest.raises(nbd.Error) as raised:
            client.pwrite(b"x" * 4096, 0)
        assert raised.value.errnum == errno.ENOSPC
    client.pwrite(b"x" * 4096, 0)
    assert client.pread(4096, 0) == b"x" * 4096
    client.shutdown()


def test_more_clients_than_there_may_be_wait(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listener, "MOST_CLIENTS", 2)
    made = Server(tmp_path / "few.sock", {"vda": PatternDisk()})
    one, other = made.client(), made.client()
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(made.path)
    assert not select.select([waiting], [], [], 0.05)[0]
    one.shutdown()
    assert select.select([waiting], [], [], 30)[0]
    other.shutdown()
    waiting.close()
    made.close()


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder / "ours", "ours"), Authority(folder / "theirs", "theirs")


@pytest.fixture
def encrypted(tmp_path: Path, disk: PatternDisk, authorities: tuple[Authority, Authority]) -> Iterator[Server]:
    folder = tmp_path / "server"
    issued = authorities[0].issue("server", f"server{tmp_path.name}"[:60], "127.0.0.1")
    made = Server(tmp_path / "tls.sock", {"vda": disk}, tls_context(str(issued)))
    assert not folder.exists()
    yield made
    made.close()


def tls_client(server: Server, folder: Path, mode: int = nbd.TLS_REQUIRE) -> nbd.NBD:
    handle = nbd.NBD()
    handle.set_export_name("vda")
    handle.set_tls(mode)
    handle.set_tls_certificates(str(folder))
    handle.set_tls_verify_peer(False)  # no name: this is a Unix socket
    handle.connect_unix(server.path)
    return handle


def test_tls_serves_those_with_a_certificate_of_its_authority(
    encrypted: Server, disk: PatternDisk, authorities: tuple[Authority, Authority], tmp_path: Path
) -> None:
    ours, theirs = (each.issue("client", f"c{tmp_path.name}"[:60], "127.0.0.1") for each in authorities)
    client = tls_client(encrypted, ours)
    bufs = [(client.aio_pread(buffer := nbd.Buffer(SIZE), 0), buffer) for _request in range(8)]  # both ways at once
    for cookie, buffer in bufs:
        while not client.aio_command_completed(cookie):
            client.poll(-1)
        assert buffer.to_bytearray() == disk.content
    client.shutdown()
    (theirs / "ca-cert.pem").write_bytes((ours / "ca-cert.pem").read_bytes())
    with pytest.raises(nbd.Error):
        tls_client(encrypted, theirs).pread(4096, 0)
    with pytest.raises(nbd.Error):
        encrypted.client()


@pytest.mark.parametrize("sent", [option(7, NAME + bytes(2)), option(3), option(8), option(6, NAME + bytes(2))])
def test_nothing_is_said_before_tls(encrypted: Server, sent: bytes) -> None:
    with encrypted.raw() as connection:
        connection.sendall(sent)
        assert reply(connection)[0] == 1 << 31 | 5
        connection.sendall(option(1, b"vda"))
        assert received(connection, 1) == b""


def test_certificates_that_are_missing_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"{tmp_path}/server-cert.pem"):
        tls_context(str(tmp_path))
