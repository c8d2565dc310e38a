# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option of all modules for a log of the run."""

from __future__ import annotations


class ModuleDocFragment:
    """Must be kept in sync with C(plugins/module_utils/_options.py)."""

    DOCUMENTATION = r"""
options:
  log_path:
    description:
      - Absolute path of a file on the host of the task. The run appends one line to it for each event. By default, no
        log is written.
      - If the option is not set in the task, the value of the environment variable E(CBT_LOG_PATH) is used.
      - The file is created with mode 0600, in check mode as well. The directory must exist, and no other user may be
        able to replace files in it.
      - Several tasks may append to one file at the same time. If the file system is full, the task warns once and
        continues without the log.
      - Passphrases and keys are never in it. See
        L(Logging,https://github.com/kvm-cbt/kvm.cbt/blob/main/docs/logging.md).
    type: path
"""
