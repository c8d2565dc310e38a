# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An NBD export that a disk is written to. Private to the collection."""

from __future__ import annotations

import contextlib
import re
import typing as t

from ..errors import CbtError, Refused
from ..files import Buffer

try:
    import nbd
except ImportError:  # told when an export is asked for: a restore to files does without
    nbd = None

_URI = re.compile(r"nbds?(\+unix)?://")
_LONGEST = 16 << 20  # bytes a request carries; the protocol's own limit is 32 MiB
_ZERO_STEP = 1 << 30  # bytes zeroed at once; a request must stay under 4 GiB


def is_nbd(path: str) -> bool:
    """True if this is the URI of an NBD export, not a path."""
    return _URI.match(path) is not None


class NbdTarget:
    """One connection to an export, for writing. May be shared between threads, whose requests then go one after another."""

    fresh = False

    def __init__(self, uri: str) -> None:
        """Connect. Raises Refused if libnbd is missing or the export cannot be written, CbtError if the server refuses."""
        if nbd is None:
            raise Refused(f"Cannot write to {uri}: libnbd is not installed here. Install python3-libnbd, or restore to a file.")
        self._uri = uri
        self._handle: t.Any = nbd.NBD()
        with self._explained():
            self._handle.connect_uri(uri)
            self.size: int = self._handle.get_size()
            if self._handle.is_read_only():
                self.close()
                raise Refused(f"Cannot write to {uri}: the server offers it for reading only.")

    @contextlib.contextmanager
    def _explained(self) -> t.Iterator[None]:
        try:
            yield
        except nbd.Error as error:
            raise CbtError(f"Cannot write to {self._uri}: {str(error).rstrip('.')}. Check that the server runs and what it says.") from error

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        """Write buffers one after another at ``offset``."""
        data = b"".join(buffers)
        with self._explained():
            for start in range(0, len(data), _LONGEST):
                self._handle.pwrite(data[start : start + _LONGEST], offset + start)

    def zero(self, start: int, stop: int) -> None:
        """Have it read as zeroes between two offsets."""
        with self._explained():
            if not self._handle.can_zero():
                for offset in range(start, stop, _LONGEST):
                    self._handle.pwrite(bytes(min(_LONGEST, stop - offset)), offset)
                return
            for offset in range(start, stop, _ZERO_STEP):
                self._handle.zero(min(_ZERO_STEP, stop - offset), offset)

    def sync(self) -> None:
        """Have the server bring everything onto its disk, if it can."""
        with self._explained():
            if self._handle.can_flush():
                self._handle.flush()

    def close(self) -> None:
        """Leave the server in order, or drop the connection if that fails."""
        with contextlib.suppress(nbd.Error):
            self._handle.shutdown()
        self._handle = None  # libnbd closes a handle when it is forgotten
