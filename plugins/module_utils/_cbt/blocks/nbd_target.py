# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NBD connections for writing to an export."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import re
import typing as t
from urllib.parse import SplitResult, urlsplit

from ..errors import CbtError, Refused
from ..files import Buffer

try:
    import nbd
except ImportError:  # NbdTarget reports it: a restore to files needs no libnbd
    nbd = None

_URI = re.compile(r"nbds?(\+unix)?://")
_LONGEST = 16 << 20  # bytes of a write request; the protocol's own limit is 32 MiB
_ZERO_STEP = 1 << 30  # bytes of a zero request, which must stay under 4 GiB


@dataclasses.dataclass(frozen=True)
class NbdTls:
    """TLS options: ``certificates`` is the CA's folder, None for the system's CAs.

    ``required`` refuses a server on another host that is reached without TLS.
    """

    required: bool = True
    certificates: str | None = None


VERIFIED = NbdTls()


def check_tls(uri: str, tls: NbdTls, library: str | None) -> None:
    """Raise Refused unless the URI meets ``tls``; ``library`` is libnbd's version."""
    address = _address(uri)
    if "tls-verify-peer" in address.query:
        raise Refused(
            f"Cannot write to {uri}: it turns off the verification of the server. Remove tls-verify-peer from it."
        )
    if address.scheme.endswith("+unix"):
        return
    if address.scheme == "nbd":
        if tls.required and not _loopback(address):
            raise Refused(
                f"Cannot write to {uri}: without TLS anyone on the network path can read and change the disk."
                " Use nbds:// and tls_certificates, or set tls: false if the network is trusted."
            )
    elif tls.certificates is not None:
        _check_folder(uri, tls.certificates)
    elif not verifies_by_itself(library):
        raise Refused(
            f"Cannot write to {uri}: libnbd {library} on this host does not verify a server against the CAs of the"
            " system (CVE-2024-7383). Set tls_certificates to a folder with the server's CA in ca-cert.pem, or update"
            " libnbd to 1.20.2 or later."
        )


def _address(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise Refused(f"Cannot write to {uri}: it is not a URI ({error}). Check disk_map.") from error


def _loopback(address: SplitResult) -> bool:
    host = address.hostname or "localhost"
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_folder(uri: str, folder: str) -> None:
    """Raise Refused unless the TLS files are readable: libnbd does not report it.

    The client certificate and key are optional, but only together.
    """
    client = [name for name in ("client-cert.pem", "client-key.pem") if os.path.lexists(os.path.join(folder, name))]
    needed = ["ca-cert.pem", *(("client-cert.pem", "client-key.pem") if client else ())]
    for name in needed:
        if not os.access(os.path.join(folder, name), os.R_OK):
            raise Refused(
                f"Cannot write to {uri}: {os.path.join(folder, name)} cannot be read. Check tls_certificates."
            )


def verifies_by_itself(library: str | None) -> bool:
    """Whether this version of libnbd verifies a server if no CA is named.

    Distributions may have fixed earlier versions. The version number does not show that.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", library or "")
    version = tuple(map(int, found.groups())) if found else ()
    return (1, 18, 5) <= version < (1, 19) or (1, 20, 2) <= version < (1, 21) or version >= (1, 22)


def is_nbd(path: str) -> bool:
    """Whether ``path`` is the URI of an NBD export."""
    return _URI.match(path) is not None


class NbdTarget:
    """One connection to an export, for writing. Threads may share it: it serializes."""

    fresh = False

    def __init__(self, uri: str, tls: NbdTls) -> None:
        """Connect. Raises CbtError if the server refuses.

        Raises Refused if libnbd is missing, the server cannot be verified or the export is read-only.
        """
        if nbd is None:
            raise Refused(
                f"Cannot write to {uri}: libnbd is not installed here. Install python3-libnbd, or restore to a file."
            )
        self._uri, self._advice = uri, "Check that the server runs, and read its log."
        self._handle: t.Any = nbd.NBD()
        check_tls(uri, tls, self._handle.get_version())
        if tls.certificates is not None:
            self._handle.set_tls_certificates(tls.certificates)
        if urlsplit(uri).scheme.startswith("nbds"):
            self._handle.set_tls_verify_peer(True)
            self._advice = (
                "The certificate of the server must be valid, be signed by the CA in tls_certificates or a CA of the"
                " system, and include the hostname in the URI."
            )
        with self._explained():
            self._handle.connect_uri(uri)
            self.size: int = self._handle.get_size()
            if self._handle.is_read_only():
                self.close()
                raise Refused(f"Cannot write to {uri}: the server exports it read-only.")

    @contextlib.contextmanager
    def _explained(self) -> t.Iterator[None]:
        try:
            yield
        except nbd.Error as error:
            raise CbtError(f"Cannot write to {self._uri}: {str(error).rstrip('.')}. {self._advice}") from error

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        """Write consecutive buffers at ``offset``."""
        data = b"".join(buffers)
        with self._explained():
            for start in range(0, len(data), _LONGEST):
                self._handle.pwrite(data[start : start + _LONGEST], offset + start)

    def zero(self, start: int, stop: int) -> None:
        """Zero the range between two offsets."""
        with self._explained():
            if not self._handle.can_zero():
                for offset in range(start, stop, _LONGEST):
                    self._handle.pwrite(bytes(min(_LONGEST, stop - offset)), offset)
                return
            for offset in range(start, stop, _ZERO_STEP):
                self._handle.zero(min(_ZERO_STEP, stop - offset), offset)

    def sync(self) -> None:
        """Flush the server's writes to disk, if the server supports it."""
        with self._explained():
            if self._handle.can_flush():
                self._handle.flush()

    def close(self) -> None:
        """Disconnect cleanly, or drop the connection if that fails."""
        with contextlib.suppress(nbd.Error):
            self._handle.shutdown()
        self._handle = None  # libnbd closes a handle once it is garbage
