# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system with odd rules (FUSE), over a folder. It runs in a process of its own, and speaks the kernel's protocol itself.

with mounted(tmp_path, "no links") as folder: ...
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ODDITIES = (
    "no links",  # a file cannot have a second name
    "no exclusive names",  # nor can a rename spare what has the name
    "no locks",
    "hanging locks",  # a request for a lock is never answered
    "sham locks",  # everyone gets every lock
    "any case",  # a name is found in any letter case
    "lower case",  # names are kept in lower case
    "no times",
    "other clock",  # five hours ahead
    "fixed modes",  # 0777, and a change is refused
    "ignored modes",  # 0777, and a change is accepted
    "unknown kinds",  # a listing does not say what is a folder
    "no folder sync",
    "short reads",
    "appends only",
    "changing inodes",
    "no replacing",  # a rename onto a file is refused
    "open stays",  # a file that is open cannot be renamed
    "hidden deletes",  # a file that is deleted while it is open gets another name
    "short names",  # of at most 40 bytes
    "no link counts",  # each file has 0 links
    "coarse times",  # in steps of two seconds
    "other owner",  # all files have the owner 65534, and a change of mode or owner is refused
    "sham replacing",  # a rename onto a file changes nothing
    "lost writes",  # only what is written at the end of a file is kept
    "stale lists",  # a listing has files that were deleted
    "double lists",  # a listing has everything twice
    "stale handles",  # of a file or folder that was deleted
    "full at sync",
    "full at close",
    "no deletes",
    "no writing",
    "no sizes",  # how large the file system is, and how much is free
)

_LIBC = ctypes.CDLL(None, use_errno=True)
_HEAD = struct.Struct("<IIQQIIII")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_MOST = 1 << 17  # bytes of a write
_MS_NOSUID_NODEV = 6
_MNT_DETACH = 2


@contextlib.contextmanager
def mounted(folder: Path, *oddities: str) -> Iterator[Path]:
    """Mount the file system below ``folder``. Its files are in ``folder / "below"``."""
    assert set(oddities) <= set(ODDITIES)
    below, point = folder / "below", folder / "odd"
    below.mkdir()
    point.mkdir()
    words = [sys.executable, __file__, str(below), str(point), *oddities]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield point
        finally:
            server.kill()  # requests that wait for an answer end now
            server.wait()
            _LIBC.umount2(os.fsencode(point), _MNT_DETACH)


class _Server:
    """Answers the kernel. Each node is a file or folder below, open as a path."""

    def __init__(self, below: str, oddities: set[str]) -> None:
        self.odd = oddities
        self.nodes = {1: os.open(below, os.O_PATH | os.O_DIRECTORY)}
        self.open: list[int] = []  # the nodes of the files that are open, one for each handle
        self.hidden: dict[int, tuple[str, int]] = {}  # by node, the name and the folder of a file that was deleted
        self.deleted: list[tuple[int, str]] = []  # folder and name
        self.written: set[int] = set()  # handles
        self.counter = 0

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | None:
        """Return what a request gets, None for no answer at all. Raises OSError."""
        calls: dict[int, Callable[[int, bytes], bytes | None]] = {
            1: self.lookup,
            2: lambda *_: None,  # forget
            3: lambda node, _: bytes(16) + self.attributes(self.fresh(node)),
            4: self.change,
            9: self.make_folder,
            10: self.unlink,
            11: self.remove,
            12: lambda node, body: self.rename(node, struct.unpack_from("<Q", body)[0], 0, body[8:]),
            13: self.link,
            14: self.open_file,
            15: self.read,
            16: self.write,
            17: lambda *_: struct.pack(
                "<QQQQQIIII24x", *[0 if "no sizes" in self.odd else 1 << 20] * 5, 4096, 255, 4096, 0
            ),
            18: self.release,
            20: self.sync,
            25: self.flush,
            26: self.begin,
            27: lambda node, _: bytes(self.fresh(node) and 16),  # open a folder
            28: self.list,
            29: lambda *_: b"",
            30: self.sync_folder,
            32: self.lock,
            33: self.lock,
            35: self.create,
            36: lambda *_: None,  # interrupt
            42: lambda *_: None,  # forget several
            45: lambda node, body: self.rename(node, *struct.unpack_from("<QI", body), body[16:]),
        }
        if opcode not in calls:
            raise OSError(errno.ENOSYS, "")
        return calls[opcode](node, body)

    def refuse_if(self, oddity: str, number: int) -> None:
        if oddity in self.odd:
            raise OSError(number, "")

    def fresh(self, node: int) -> int:
        """Return a node, which exists."""
        if not os.fstat(self.nodes[node]).st_nlink:
            self.refuse_if("stale handles", errno.ESTALE)
        return node

    def begin(self, _node: int, body: bytes) -> bytes:
        remote_locks = bool(self.odd & {"no locks", "hanging locks", "sham locks"})
        flags = (1 << 5) | (remote_locks << 10) | (remote_locks << 1)
        return struct.pack("<IIIIHHIIHHI28x", 7, 31, _MOST, flags, 16, 12, _MOST, 1, 0, 0, 0)

    # Names and nodes.

    def name(self, node: int, raw: bytes) -> str:
        """Return the name that the file system keeps for the one given."""
        name = os.fsdecode(raw.rstrip(b"\0"))
        if "short names" in self.odd and len(name) > 40:
            raise OSError(errno.ENAMETOOLONG, "")
        if "lower case" in self.odd:
            return name.lower()
        if "any case" in self.odd:
            return next((each for each in os.listdir(self.path(node)) if each.lower() == name.lower()), name)
        return name

    def path(self, node: int) -> str:
        return f"/proc/self/fd/{self.nodes[node]}"

    def found(self, parent: int, name: str) -> bytes:
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.nodes[parent])
        number = os.fstat(handle).st_ino
        if number in self.nodes:
            os.close(handle)
        else:
            self.nodes[number] = handle  # stays open, so that the number is not used again
        return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + self.attributes(number)

    def attributes(self, node: int) -> bytes:
        known = os.fstat(self.nodes[node])
        times = [int(each) for each in (known.st_atime, known.st_mtime, known.st_ctime)]
        fractions = [each % 10**9 for each in (known.st_atime_ns, known.st_mtime_ns, known.st_ctime_ns)]
        if "no times" in self.odd:
            times = fractions = [0, 0, 0]
        if "other clock" in self.odd:
            times = [each + 5 * 3600 for each in times]
        if "coarse times" in self.odd:
            times, fractions = [each & ~1 for each in times], [0, 0, 0]
        mode, number = known.st_mode, known.st_ino
        owners = [65534, 65534] if "other owner" in self.odd else [known.st_uid, known.st_gid]
        if self.odd & {"fixed modes", "ignored modes"}:
            mode = stat.S_IFMT(mode) | 0o777
        if "changing inodes" in self.odd:
            self.counter += 1
            number = self.counter + 10**6
        return _ATTR.pack(
            number, known.st_size, known.st_blocks, *times, *fractions, mode,
            0 if "no link counts" in self.odd else known.st_nlink, *owners, 0, 4096, 0,
        )  # fmt: skip

    def lookup(self, node: int, body: bytes) -> bytes:
        return self.found(node, self.name(node, body))

    def change(self, node: int, body: bytes) -> bytes:
        valid, _pad, _handle, size = struct.unpack_from("<IIQQ", body)
        if valid & 7:
            self.refuse_if("other owner", errno.EPERM)
            self.refuse_if("fixed modes", errno.EPERM)
        if valid & 1 and "ignored modes" not in self.odd:
            os.chmod(self.path(node), struct.unpack_from("<I", body, 68)[0] & 0o7777)
        if valid & 8:
            os.truncate(self.path(node), size)
        return bytes(16) + self.attributes(node)

    def make_folder(self, node: int, body: bytes) -> bytes:
        self.refuse_if("no writing", errno.EACCES)
        (mode,) = struct.unpack_from("<I", body)
        name = self.name(node, body[8:])
        os.mkdir(name, mode, dir_fd=self.nodes[node])
        return self.found(node, name)

    def remove(self, node: int, body: bytes) -> bytes:
        os.rmdir(self.name(node, body), dir_fd=self.nodes[node])
        return b""

    def unlink(self, node: int, body: bytes) -> bytes:
        self.refuse_if("no deletes", errno.EPERM)
        name, folder = self.name(node, body), self.nodes[node]
        self.deleted.append((node, name))
        if "hidden deletes" in self.odd and os.stat(name, dir_fd=folder).st_ino in self.open:
            self.counter += 1
            hidden = f".fuse_hidden{self.counter:024x}"
            self.hidden.setdefault(os.stat(name, dir_fd=folder).st_ino, (hidden, folder))
            os.rename(name, hidden, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
        return b""

    def rename(self, node: int, other: int, flags: int, words: bytes) -> bytes:
        first, second = words.split(b"\0")[:2]
        old, new = self.name(node, first), self.name(other, second)
        source, target = self.nodes[node], self.nodes[other]
        there = os.path.lexists(f"{self.path(other)}/{new}")
        if flags:
            self.refuse_if("no exclusive names", errno.EINVAL)
        if there and (flags or "no replacing" in self.odd):
            raise OSError(errno.EEXIST, "")
        if there and "sham replacing" in self.odd:
            return b""
        if os.stat(old, dir_fd=source, follow_symlinks=False).st_ino in self.open:
            self.refuse_if("open stays", errno.EBUSY)
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
        return b""

    def link(self, node: int, body: bytes) -> bytes:
        self.refuse_if("no links", errno.EPERM)
        self.refuse_if("no exclusive names", errno.EPERM)
        old, name = struct.unpack_from("<Q", body)[0], self.name(node, body[8:])
        os.link(self.path(old), name, dst_dir_fd=self.nodes[node], follow_symlinks=True)
        return self.found(node, name)

    # Content.

    def opened(self, node: int, flags: int) -> bytes:
        handle = os.open(self.path(node), flags & ~(os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL))
        self.open.append(node)
        return struct.pack("<QII", handle, 1 if "short reads" in self.odd else 0, 0)

    def open_file(self, node: int, body: bytes) -> bytes:
        return self.opened(node, struct.unpack_from("<I", body)[0])

    def create(self, node: int, body: bytes) -> bytes:
        self.refuse_if("no writing", errno.EACCES)
        flags, mode = struct.unpack_from("<II", body)
        name = self.name(node, body[16:])
        os.close(os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, mode, dir_fd=self.nodes[node]))
        entry = self.found(node, name)
        return entry + self.opened(struct.unpack_from("<Q", entry)[0], flags)

    def release(self, node: int, body: bytes) -> bytes:
        (handle,) = struct.unpack_from("<Q", body)
        os.close(handle)
        self.written.discard(handle)
        self.open.remove(node)
        if node in self.hidden and node not in self.open:
            name, folder = self.hidden.pop(node)
            os.unlink(name, dir_fd=folder)
        return b""

    def read(self, node: int, body: bytes) -> bytes:
        self.fresh(node)
        handle, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(handle, min(size, 1000) if "short reads" in self.odd else size, offset)

    def write(self, node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        self.written.add(handle)
        if offset != os.fstat(handle).st_size:
            self.refuse_if("appends only", errno.EOPNOTSUPP)
            if "lost writes" in self.odd:
                return struct.pack("<II", size, 0)
        return struct.pack("<II", os.pwrite(handle, body[40 : 40 + size], offset), 0)

    def sync(self, _node: int, _body: bytes) -> bytes:
        self.refuse_if("full at sync", errno.ENOSPC)
        return b""

    def flush(self, _node: int, body: bytes) -> bytes:
        if struct.unpack_from("<Q", body)[0] in self.written:
            self.refuse_if("full at close", errno.EDQUOT)
        return b""

    def sync_folder(self, _node: int, _body: bytes) -> bytes:
        self.refuse_if("no folder sync", errno.EINVAL)
        return b""

    def lock(self, _node: int, _body: bytes) -> bytes | None:
        self.refuse_if("no locks", errno.EOPNOTSUPP)
        return None if "hanging locks" in self.odd else b""

    def list(self, node: int, body: bytes) -> bytes:
        _handle, offset, size = struct.unpack_from("<QQI", body)
        answer = b""
        for number, (name, inode, kind) in enumerate(self.entries(node), 1):
            entry = struct.pack("<QQII", inode, number, len(name), 0 if "unknown kinds" in self.odd else kind) + name
            entry += bytes(-len(entry) % 8)
            if number > offset:
                if len(answer) + len(entry) > size:
                    break
                answer += entry
        return answer

    def entries(self, node: int) -> list[tuple[bytes, int, int]]:
        """Return the name, number and kind of each entry that a listing of a folder has."""
        self.fresh(node)
        with os.scandir(self.path(node)) as seen:
            found = [
                (os.fsencode(each.name), each.inode(), 4 if each.is_dir(follow_symlinks=False) else 8) for each in seen
            ]
        if "stale lists" in self.odd:
            found += [(os.fsencode(name), 1, 8) for folder, name in self.deleted if folder == node]
        return sorted(found * (2 if "double lists" in self.odd else 1))


def _serve(below: str, point: str, oddities: set[str]) -> None:
    kernel = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={kernel},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if _LIBC.mount(b"odd", os.fsencode(point), b"fuse.odd", _MS_NOSUID_NODEV, options):
        raise OSError(ctypes.get_errno(), "mount")
    print("ready", flush=True)
    server = _Server(below, oddities)
    while True:
        try:
            request = os.read(kernel, _MOST + 4096)
        except OSError as error:
            if error.errno == errno.ENOENT:  # the request was interrupted
                continue
            return  # not mounted any more
        _length, opcode, unique, node, *_of_whom = _HEAD.unpack_from(request)
        number = 0
        try:
            body = server.answer(opcode, node, request[_HEAD.size :])
        except OSError as error:
            number, body = error.errno or errno.EIO, b""
        if body is not None:
            with contextlib.suppress(FileNotFoundError):  # the client has gone
                os.write(kernel, struct.pack("<IiQ", 16 + len(body), -number, unique) + body)


if __name__ == "__main__":
    os.umask(0)
    _serve(sys.argv[1], sys.argv[2], set(sys.argv[3:]))
