# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object stores: names with slashes, immutable content.

base.py defines the interface and the checks that all stores share. directory.py keeps objects as files (local, NFS or
CephFS). It opens them with folders.py, which follows no symbolic link. mounts.py follows the links of a path, and
detects a share that is not mounted. s3_store.py keeps objects in a bucket. s3_client.py makes the client and explains
its errors. s3_upload.py uploads in parts. s3_options.py has the options; it is separate because the client loads
slowly. reserve.py keeps some space in a directory, so that a full file system can be freed again.

In the engine, everything that only one kind of store knows is here; ../location.py chooses the kind. A new kind needs:

- an implementation of Store and Upload of base.py, tested against the contract in tests/store_contract.py;
- its connection options as a class here, a field for them in RepositoryLocation, and a branch in open_store;
- these options in plugins/module_utils/_options.py and _repository.py, and in plugins/doc_fragments/_repository.py;
- variables of the roles that pass them on, and its library in roles/prepare.

Neighbours: format/names.py decides which names are objects.
"""
