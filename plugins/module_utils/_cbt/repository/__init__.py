# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository: restore points in an object store.

repository.py opens or creates a repository, and lists and reads restore points. location.py has its address and
credentials, and opens its store. selecting.py chooses restore points by domain, id and time.

Each concern has a folder, and each folder imports only those after it: memory (what this host knows of a
repository) and dedup; sharing (writers and collectors at the same time); records (damage, verification); the files
here; packs; stores; format; crypto.

Neighbours: the verbs in operations/. Nothing here knows a domain or libvirt. docs/repository-format.md describes
the objects.
"""
