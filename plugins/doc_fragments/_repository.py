# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of modules that use a repository."""

from __future__ import annotations


class ModuleDocFragment:
    """Must be kept in sync with C(plugins/module_utils/_module.py)."""

    DOCUMENTATION = r"""
options:
  repository:
    description:
      - Absolute path of the repository's directory, local or mounted (NFS, CephFS), or C(s3://bucket/prefix).
      - The bucket must exist. Without a prefix the repository takes the whole bucket.
    type: path
    required: true
  s3:
    description:
      - How to reach the object store of a repository C(s3://...).
      - What is left out follows the environment and the files of the AWS SDK of the user the task runs as,
        such as C(AWS_ACCESS_KEY_ID) or C(~/.aws/credentials).
    type: dict
    suboptions:
      endpoint_url:
        description:
          - URL of the service, such as V(https://s3.example.com). C(AWS_ENDPOINT_URL_S3), C(AWS_ENDPOINT_URL) or that of AWS if left out.
        type: str
      region:
        description:
          - Region of the bucket.
        type: str
      profile:
        description:
          - A profile of the SDK's files.
        type: str
      access_key:
        description:
          - Id of the access key.
        type: str
      secret_key:
        description:
          - Secret of the access key.
        type: str
      validate_certs:
        description:
          - Whether the server's certificate has to be valid.
        type: bool
        default: true
      ca_bundle:
        description:
          - Path of a file with the certificates of the authorities to trust, in place of the system's.
        type: path
  passphrase:
    description:
      - Passphrase of an encrypted repository. A repository is encrypted if it is created with one.
      - Any text in UTF-8, taken as it is given. White space and newlines at its end belong to it.
      - It is never logged or returned. Keep it in a vault, and a copy of it elsewhere. Without it nothing can be read, by nobody.
      - Changing it is what M(kvm.cbt.cbt_repository) is for.
    type: str
  accept_repository:
    description:
      - Whether to accept a repository that is not in the state that this host knows.
      - Each host remembers, for each location, the id of the repository, whether it is encrypted, and the newest restore points that it saw.
        If the repository is missing, is another one, or went back to an older state, the task fails. The share may not be mounted, or an older copy
        of the repository may have been put in its place. Restore points that retention removed do not cause a failure.
      - With V(true), the state found replaces the known one. Set it for one run only. In check mode, nothing is remembered.
      - A host that sees a repository for the first time always accepts it, as in a disaster recovery.
      - If you rotate backup disks, mount each of them at a path of its own.
      - The known state is kept in C(/var/lib/kvm-cbt) for root, and in C(~/.local/state/kvm-cbt) for other users, or in E(XDG_STATE_HOME) where that is set.
    type: bool
    default: false
requirements:
  - cryptography (C(python3-cryptography) of the distribution), if the repository is encrypted
  - boto3 >= 1.26 (C(python3-boto3) of the distribution), if the repository is on S3
"""

    CREATE = r"""
options:
  create_repository:
    description:
      - Whether to create the repository if its directory is missing or empty.
      - By default, a missing repository is an error, because the share that holds it may not be mounted.
        M(kvm.cbt.cbt_repository), which the role P(kvm.cbt.prepare#role) runs, creates it.
    type: bool
    default: false
"""

    WORKERS = r"""
options:
  workers:
    description:
      - Number of parallel workers, each with a connection of its own.
      - By default two more than there are processors, at most 16.
    type: int
"""

    STORING = r"""
options:
  compression:
    description:
      - How blocks are compressed. A block that does not shrink is stored as it is.
      - V(zlib) is slow, but needs nothing that is not part of Python, neither for the backup nor for a restore.
      - It may differ from one backup to the next. Blocks that are stored already are not compressed again.
    type: str
    choices: [lz4, zstd, zlib, none]
    default: lz4
  compression_level:
    description:
      - Effort for O(compression), more of which takes more time for less space.
      - For V(lz4) from V(0) (the default) to V(12), for V(zstd) from V(1) to V(22) (V(3) by default), for V(zlib) from V(1) to V(9) (V(6) by default).
    type: int
  dedup:
    description:
      - Where a block that is not as in the last restore point is looked for before it is stored.
      - V(repository) looks among all packs of the repository, so that domains made from one image share what they have in common.
      - V(domain) looks among those written for this domain, so that damage of a pack stays with one domain.
      - V(none) stores it. Blocks that did not change are not stored again in any case.
      - What to look for is kept in C(/var/cache/kvm.cbt) on the hypervisor, or in E(XDG_CACHE_HOME) where that is set.
        It is a few megabytes for each terabyte stored and may be deleted at any time.
    type: str
    choices: [repository, domain, none]
    default: repository
  rate_limit:
    description:
      - Read at most this many bytes per second, such as V(100M), all workers together.
    type: bytes
"""
