# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens the libvirt session that a module's options name."""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ._cbt.control import Control
from ._cbt.hypervisor.connection import Session, connect
from ._cbt.hypervisor.domain_xml.disks import Selection
from ._cbt.hypervisor.other_hosts import OtherHosts
from ._runtime import Module

__all__ = ["Session", "other_hosts", "selection", "session", "session_if_installed", "wait"]


_LOOK_AGAIN = 0.5  # seconds between two looks whether another run has ended


@contextlib.contextmanager
def session(module: Module) -> t.Iterator[Session]:
    """Open the libvirt session that the module's options name, and close it after the block."""
    params = module.params
    with connect(params["uri"], params["username"], params["password"], params["authfile"]) as opened:
        opened.wait = functools.partial(wait, module.control, time.monotonic() + params.get("lock_timeout", 0))
        yield opened


def wait(control: Control, until: float) -> bool:
    """Wait for another run, until a time at most. Return whether there was time left."""
    control.check()
    left = until - time.monotonic()
    time.sleep(max(0, min(_LOOK_AGAIN, left)))
    return left > 0


def selection(module: AnsibleModule) -> Selection:
    """Return the selection of disks in the module's options."""
    include = module.params["include_disks"]
    return Selection(None if include is None else tuple(include), tuple(module.params["exclude_disks"]))


def other_hosts(module: AnsibleModule) -> OtherHosts:
    """Return what the module's options say of other hosts that may run the domain."""
    params = module.params
    return OtherHosts(tuple(params["answered_hosts"]), tuple(params["silent_hosts"]), params["offline_confirmed"])


def session_if_installed(module: Module) -> t.ContextManager[Session | None]:
    """Return the libvirt session; None if libvirt's Python module is not installed."""
    try:
        importlib.import_module("libvirt")
    except ImportError:
        return contextlib.nullcontext()
    return session(module)
