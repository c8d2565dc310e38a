# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of modules that use a repository. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    """Must be kept in sync with C(plugins/module_utils/_module.py)."""

    DOCUMENTATION = r"""
options:
  repository:
    description:
      - Absolute path of the repository's directory, local or mounted (NFS, CephFS).
    type: path
    required: true
"""

    WORKERS = r"""
options:
  workers:
    description:
      - Number of parallel workers, each with a connection of its own.
      - By default two more than there are processors, at most 16.
    type: int
"""
