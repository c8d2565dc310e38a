# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connects to libvirt, and converts libvirt's errors to HypervisorError."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import threading
import time
import typing as t
import urllib.parse

from ..errors import HypervisorError, ProgramError, Refused

try:
    import libvirt
except ImportError:  # the module reports this before it calls the engine
    libvirt = None

ANSWER_WITHIN = 60  # seconds to open a connection; libvirt itself waits forever for a daemon that does not answer
REOPEN_WITHIN = 15  # seconds that a restart of libvirtd may take

_Read = t.TypeVar("_Read")


def _credentials(username: str | None, password: str | None) -> list[t.Any]:
    wanted = [
        libvirt.VIR_CRED_AUTHNAME,
        libvirt.VIR_CRED_USERNAME,
        libvirt.VIR_CRED_PASSPHRASE,
        libvirt.VIR_CRED_NOECHOPROMPT,
    ]

    def answer(credentials: list[list[t.Any]], _data: t.Any) -> int:
        for credential in credentials:
            name = credential[0] in (libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_USERNAME)
            credential[4] = username if name else password
        return 0

    return [wanted, answer, None]


def _in_time(opener: t.Callable[[], t.Any]) -> t.Any:
    """Return or raise the outcome of ``opener``; TimeoutError if it takes too long.

    The thread of ``opener`` then continues in the background.
    """
    outcome: concurrent.futures.Future[t.Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(opener())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(ANSWER_WITHIN)


def no_wait() -> bool:
    """Return False at once."""
    return False


class Session:
    """A connection to libvirt, reopened if libvirtd was restarted.

    Therefore clean-up works after a restart. See ``connect``. An operation that finds another run at work on its domain
    calls ``wait``, which returns after a moment, and tries again unless it returned False.
    """

    wait: t.Callable[[], bool] = staticmethod(no_wait)

    def __init__(self, opener: t.Callable[[], t.Any], uri: str) -> None:
        self._open = opener
        self._uri = uri
        self._connection = self._reopen()

    def _reopen(self) -> t.Any:
        what = f"Cannot connect to libvirt at {self._uri.split('?')[0]}"
        try:
            return _in_time(self._open)
        except concurrent.futures.TimeoutError as error:
            raise HypervisorError(
                f"{what}: it did not answer within {ANSWER_WITHIN} s. Check that libvirtd or virtqemud there is not"
                " hanging."
            ) from error
        except libvirt.libvirtError as error:
            advice = "Check that libvirtd or virtqemud (virtproxyd for TCP) runs there and that this user may use it."
            if error.get_error_code() in (libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED):
                advice = "Authentication failed. Check username and password, or authfile."
            raise HypervisorError(f"{what}: {error}. {advice}") from error

    @property
    def remote_host(self) -> str | None:
        """The remote host that the URI names; None if it is this host."""
        host = urllib.parse.urlsplit(self.api.getURI()).hostname
        return None if host == "localhost" else host

    @property
    def alive(self) -> bool:
        """Whether the connection was still open when it was last used."""
        return bool(self._connection.isAlive())

    @property
    def api(self) -> t.Any:
        """libvirt's connection object, reopened if necessary. Raises HypervisorError if libvirt does not answer."""
        deadline = time.monotonic() + REOPEN_WITHIN
        while not self.alive:
            try:
                self._connection = self._reopen()
                break
            except HypervisorError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        return self._connection

    def domain(self, name: str) -> Domain:
        """Return the domain of this UUID or name.

        Raises Refused if there is none, with the names of the existing domains, or HypervisorError.
        """
        for look_up in (self.api.lookupByUUIDString, self.api.lookupByName):  # a name may be the UUID of another domain
            try:
                found = look_up(name)
                return Domain(self, found.name(), found.UUIDString())
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise HypervisorError(f"Cannot look up domain {name}: {error}") from error
        known = sorted(domain.name for domain in self.domains())
        raise Refused(
            f"There is no domain {name} on this host; it has {', '.join(known) or 'none'}. Check the name and the host."
        )

    def domains(self, active_only: bool = False) -> list[Domain]:
        """Return all domains, or only those that run, sorted by name."""
        with explained("list the domains"):
            flags = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE if active_only else 0
            found = [Domain(self, each.name(), each.UUIDString()) for each in self.api.listAllDomains(flags)]
        return sorted(found, key=lambda domain: domain.name)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain by name and UUID."""

    session: Session
    name: str
    uuid: str

    @property
    def api(self) -> t.Any:
        """libvirt's domain object, on a connection that is open."""
        try:
            return self.session.api.lookupByUUIDString(self.uuid)
        except libvirt.libvirtError:
            if self.session.alive:
                raise
            return self.session.api.lookupByUUIDString(self.uuid)  # only a call shows that libvirtd was restarted

    def xml(self, flags: int) -> str | None:
        """Return the domain's XML; None if the domain no longer exists. Raises HypervisorError."""
        return self.reading("domain", lambda api: t.cast(str, api.XMLDesc(flags)))

    def reading(self, what: str, read: t.Callable[[t.Any], _Read]) -> _Read | None:
        """Return what ``read`` returns of libvirt's domain object; None if the domain no longer exists.

        Raises HypervisorError if libvirt refuses.
        """
        try:
            with explained(f"read {what} {self.name}"):
                return read(self.api)
        except HypervisorError:
            if self.exists:
                raise
            return None

    @property
    def exists(self) -> bool:
        """Whether libvirt knows the domain now."""
        with contextlib.suppress(libvirt.libvirtError):
            return self.api is not None
        return False


@contextlib.contextmanager
def connect(
    uri: str = "qemu:///system",
    username: str | None = None,
    password: str | None = None,
    authfile: str | None = None,
) -> t.Iterator[Session]:
    """Open a session with libvirt and close it after the block.

    ``authfile`` is a libvirt authentication file; ``username`` and ``password`` answer SASL. Raises HypervisorError if
    libvirt does not answer, Refused if ``authfile`` cannot be read.
    """
    # Otherwise libvirt prints each error to stderr. Our messages include its text.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    if authfile is not None:
        if not os.access(authfile, os.R_OK):  # libvirt's error would not name the cause
            raise Refused(f"Cannot read the authentication file {authfile}. Check authfile and its permissions.")
        uri = f"{uri}{'&' if '?' in uri else '?'}authfile={urllib.parse.quote(authfile)}"

    def open_it() -> t.Any:
        if username is not None or authfile is not None:
            return libvirt.openAuth(uri, _credentials(username, password), 0)
        return libvirt.open(uri)

    session = Session(open_it, uri)
    try:
        yield session
    finally:
        session.close()


@contextlib.contextmanager
def explained(what: str, advice: str = "") -> t.Iterator[None]:
    """Convert errors of libvirt and of programs in the block to HypervisorError.

    The message is ``Cannot <what>: <message of the error>. <advice>``.
    """
    try:
        yield
    except (libvirt.libvirtError, ProgramError) as error:
        said = str(error).rstrip(".")
        raise HypervisorError(f"Cannot {what}: {said}. {advice}".strip()) from error
