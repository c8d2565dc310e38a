# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connecting to libvirt, and libvirt's errors as ours. Private to the collection."""

from __future__ import annotations

import contextlib
import typing as t

from ..errors import HypervisorError, Refused

try:
    import libvirt
except ImportError:  # reported by the module before the engine is asked
    libvirt = None


def _ignore(_context: t.Any, _error: t.Any) -> None:
    """libvirt prints every error to stderr unless told otherwise; ours carry the text."""


def _credentials(username: t.Optional[str], password: t.Optional[str]) -> t.List[t.Any]:
    wanted = [libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_USERNAME, libvirt.VIR_CRED_PASSPHRASE, libvirt.VIR_CRED_NOECHOPROMPT]

    def answer(credentials: t.List[t.List[t.Any]], _data: t.Any) -> int:
        for credential in credentials:
            name = credential[0] in (libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_USERNAME)
            credential[4] = username if name else password
        return 0

    return [wanted, answer, None]


@contextlib.contextmanager
def connect(
    uri: str = "qemu:///system",
    username: t.Optional[str] = None,
    password: t.Optional[str] = None,
    authfile: t.Optional[str] = None,
) -> t.Iterator[t.Any]:
    """Open a connection to libvirt and close it afterwards.

    ``authfile`` is a libvirt authentication file; ``username`` and ``password`` answer SASL.
    Raises HypervisorError if libvirt does not answer.
    """
    libvirt.registerErrorHandler(_ignore, None)
    try:
        if authfile is not None:
            separator = "&" if "?" in uri else "?"
            uri = f"{uri}{separator}authfile={authfile}"
        if username is not None or authfile is not None:
            connection = libvirt.openAuth(uri, _credentials(username, password), 0)
        else:
            connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise HypervisorError(
            f"Cannot connect to libvirt at {uri.split('?')[0]}: {error}. Check that libvirtd or virtqemud runs there and that this user may use it."
        ) from error
    try:
        yield connection
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


@contextlib.contextmanager
def explained(what: str, advice: str = "") -> t.Iterator[None]:
    """Turn libvirt's errors inside the block into HypervisorError: ``Cannot <what>: <libvirt's words>. <advice>``."""
    try:
        yield
    except libvirt.libvirtError as error:
        said = str(error).rstrip(".")
        raise HypervisorError(f"Cannot {what}: {said}. {advice}".strip()) from error


def find_domain(connection: t.Any, name: str) -> t.Any:
    """The domain of this name or UUID.

    Raises Refused, naming the domains there are, if it is unknown.
    """
    for look_up in (connection.lookupByName, connection.lookupByUUIDString):
        try:
            return look_up(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                raise HypervisorError(f"Cannot look up domain {name}: {error}") from error
    known = sorted(domain.name() for domain in connection.listAllDomains())
    raise Refused(f"There is no domain {name} on this host; it has {', '.join(known) or 'none'}. Check the name and the host.")
