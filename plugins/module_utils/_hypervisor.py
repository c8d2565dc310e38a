# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens the libvirt session that a module's options name."""

from __future__ import annotations

import contextlib
import importlib
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ._cbt.hypervisor.connection import Session, connect
from ._cbt.hypervisor.disks import Selection

__all__ = ["Session", "selection", "session", "session_if_installed"]


def session(module: AnsibleModule) -> t.ContextManager[Session]:
    """Return the libvirt session that the module's options name."""
    params = module.params
    return connect(params["uri"], params["username"], params["password"], params["authfile"])


def selection(module: AnsibleModule) -> Selection:
    """Return the selection of disks in the module's options."""
    include = module.params["include_disks"]
    return Selection(None if include is None else tuple(include), tuple(module.params["exclude_disks"]))


def session_if_installed(module: AnsibleModule) -> t.ContextManager[Session | None]:
    """Return the libvirt session; None if libvirt's Python module is not installed."""
    try:
        importlib.import_module("libvirt")
    except ImportError:
        return contextlib.nullcontext()
    return session(module)
