# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Uses libvirt and QEMU, on this host or another.

connection.py opens a session and converts libvirt's errors to ours. domain.py reads a domain, checkpoints.py its
checkpoints and bitmaps; domain_xml/ reads its definition. backup_job.py and offline_export.py serve a frozen view of
the disks over NBD: the first for a running domain, the second for one that is shut off. other_hosts.py finds disks of a
shut-off domain that another host may have open. agent.py freezes and thaws file systems in the guest. block_copy.py and
definition.py move a domain to another image. scratch.py, storage_pools.py and free_space.py provide the folder in which
QEMU keeps old content during a job. paused_start.py starts a domain for its backup. leftovers.py removes the leftovers
of killed runs. allowed/ lists the parts of a host that a definition from a repository may use, and removes the rest
from the definition.

Neighbours: images/ for files that no domain has open. This package imports neither blocks/ nor repository/.
"""
