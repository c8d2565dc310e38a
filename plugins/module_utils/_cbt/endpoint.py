# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The address of an NBD server and its exports, for the code that starts it or reads from it."""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True)
class TcpServer:
    """An NBD server at a TCP port.

    ``address`` is the name that its certificate must have. ``listen`` is the numeric address of the same host.
    ``certificates`` is the folder of this side's certificates, as libnbd expects it; None without TLS.
    """

    address: str
    listen: str
    port: int
    certificates: str | None = None


Server = t.Union[str, TcpServer]  # the path of a Unix socket, or TCP


@dataclasses.dataclass(frozen=True)
class Export:
    """The export of one disk: ``target`` is the disk and the name of the export.

    ``dirty_context`` is the metadata context that reports the changes, None if the disk is read in full.
    """

    target: str
    server: Server
    dirty_context: str | None
