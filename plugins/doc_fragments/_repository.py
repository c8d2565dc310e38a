# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of modules that use a repository."""

from __future__ import annotations


class ModuleDocFragment:
    """Must be kept in sync with C(plugins/module_utils/_options.py)."""

    DOCUMENTATION = r"""
options:
  repository:
    description:
      - Absolute path of the repository's directory, local or mounted (NFS, CephFS), or C(s3://bucket/prefix).
      - The bucket must exist. Without a prefix, the repository uses the whole bucket.
      - If the option is not set in the task, the environment variable E(CBT_REPOSITORY) of the host of the task is
        used.
    type: path
    required: true
  s3:
    description:
      - Connection to the object store of a repository at C(s3://...).
      - Values that are not set are taken from the environment and the AWS SDK files of the user that runs the task,
        such as C(AWS_ACCESS_KEY_ID) or C(~/.aws/credentials).
    type: dict
    suboptions:
      endpoint_url:
        description:
          - URL of the service, such as V(https://s3.example.com). By default, C(AWS_ENDPOINT_URL_S3),
            C(AWS_ENDPOINT_URL) or the URL of AWS.
        type: str
      region:
        description:
          - Region of the bucket.
        type: str
      profile:
        description:
          - Name of a profile in the AWS SDK files.
        type: str
      access_key:
        description:
          - Access key id.
        type: str
      secret_key:
        description:
          - Secret access key.
        type: str
      validate_certs:
        description:
          - Whether to verify the server's certificate.
        type: bool
        default: true
      ca_bundle:
        description:
          - Path of a file with the CA certificates to trust, in place of the system's.
        type: path
      addressing_style:
        description:
          - Whether the bucket's name is in the path of each request (V(path)) or in the hostname (V(virtual)), as
            Alibaba Cloud, Tencent Cloud and Huawei Cloud require.
          - By default, or with V(auto), the path if O(s3.endpoint_url) is set, otherwise the hostname.
        type: str
        choices: [auto, path, virtual]
      server_side_encryption:
        description:
          - Method by which the service encrypts each object that is stored. V(aws:kms) and V(aws:kms:dsse) use a key of
            the key management service.
          - By default, the bucket's own setting applies, or V(aws:kms) if O(s3.kms_key_id) is set. Set it for a bucket
            whose policy denies uploads that do not request a method.
        type: str
        choices: [AES256, aws:kms, aws:kms:dsse]
      kms_key_id:
        description:
          - Id or ARN of the key with which the service encrypts. By default, the key of the bucket or of the account.
        type: str
  passphrase:
    description:
      - Passphrase of an encrypted repository. A repository that is created with a passphrase is encrypted.
      - The passphrase is any UTF-8 text and is used exactly as given, including trailing whitespace and newlines.
      - It is never logged or returned. Keep it in a vault, and keep a copy elsewhere. Without it, the repository cannot
        be read by anyone.
      - Use M(kvm.cbt.cbt_repository) to change it.
      - Only one of O(passphrase), O(passphrase_file) and O(passphrase_command) can be set.
      - If none of them is set in the task, the environment variable E(CBT_PASSPHRASE) of the host of the task is used.
        If that is not set, E(CBT_PASSPHRASE_FILE) is used. Root and other processes of the same user can read the
        environment of a process.
    type: str
  passphrase_file:
    description:
      - Absolute path of a file on the host of the task that contains the passphrase, so that the passphrase does not
        pass through the controller.
      - It must be a regular file that belongs to root or to the user that runs the task. Other users must not be able
        to read it, and its group must not be able to write to it, as with mode 0600 or 0640.
      - One newline at the end of the file does not belong to the passphrase.
    type: path
  passphrase_command:
    description:
      - Command that prints the passphrase on the host of the task, such as
        V(systemd-creds decrypt /etc/kvm-cbt/passphrase.cred). It runs in check mode as well.
      - It is split into words as a shell does, but it is not run by a shell. It gets no input, and must end within 60
        seconds with exit status 0.
      - One newline at the end of its output does not belong to the passphrase. No error message contains its output.
      - Other users of the host can see a running command, so do not put a secret into it.
    type: str
  accept_repository:
    description:
      - Whether to accept a repository whose state differs from the one this host knows.
      - Each host remembers, for each location, the id of the repository, whether it is encrypted, and the newest
        restore points it has seen. The task fails if the repository is missing, is a different one, or went back to an
        older state. The share may not be mounted, or an older copy of the repository may be in its place. Restore
        points that retention removed do not cause a failure.
      - With V(true), the state that is found replaces the known one. Set it for one run only. In check mode, nothing is
        remembered.
      - A host that uses a repository for the first time always accepts it, for example in a disaster recovery.
      - If you rotate backup disks, mount each of them at its own path.
      - The known state is stored in C(/var/lib/kvm-cbt) for root, and in C(~/.local/state/kvm-cbt) for other users, or
        in E(XDG_STATE_HOME) if that is set.
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
      - Whether to create the repository that is written to if its directory is missing or empty.
      - By default, a missing repository is an error, because the share that holds it may not be mounted.
        M(kvm.cbt.cbt_repository) creates it, as the role P(kvm.cbt.prepare#role) does.
    type: bool
    default: false
"""

    WORKERS = r"""
options:
  workers:
    description:
      - Number of parallel workers, each with its own connection.
      - By default, the number of processors plus two, at most 16.
    type: int
"""

    STORING = r"""
options:
  compression:
    description:
      - Compression of blocks. A block that does not become smaller is stored uncompressed.
      - V(zlib) is slow, but requires only Python's standard library for both backup and restore.
      - The default is V(lz4). If the Python module C(lz4) is not installed, it is V(zlib), with a warning, unless
        O(compression_level) is set.
      - A host without the module of a codec cannot restore or verify blocks that other hosts compressed with it.
      - The setting may change from one backup to the next. Blocks that are already stored are not compressed again.
    type: str
    choices: [lz4, zstd, zlib, none]
  compression_level:
    description:
      - Level for O(compression). Higher levels take more time and save more space.
      - V(0) to V(12) for V(lz4), V(0) by default.
      - V(1) to V(22) for V(zstd), V(3) by default.
      - V(1) to V(9) for V(zlib), V(6) by default.
    type: int
  dedup:
    description:
      - Scope of deduplication. It applies to blocks that differ from the last restore point. Unchanged blocks are never
        stored again.
      - V(repository) searches all packs of the repository, so domains that were created from one image share their
        common blocks.
      - V(domain) searches only packs written for this domain, so damage to a pack affects only one domain.
      - V(none) stores all of these blocks.
      - The index is stored in C(/var/cache/kvm.cbt) on the host that runs the task, or in E(XDG_CACHE_HOME) if that is
        set. It takes a few megabytes per terabyte stored and can be deleted at any time.
    type: str
    choices: [repository, domain, none]
    default: repository
  rate_limit:
    description:
      - Maximum number of bytes to read per second, such as V(100M), for all workers together.
    type: bytes
"""
