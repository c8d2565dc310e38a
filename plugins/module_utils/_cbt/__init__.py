# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine of kvm.cbt: plain Python that imports nothing of Ansible.

Layers
------
A folder imports only folders below it; tests/unit/test_house.py holds this and every list on this page.

    operations/     one folder for each verb; the only place where the three below meet
    hypervisor/     libvirt and QEMU; uses images/, which runs qemu-img and reads image files
    blocks/         extents, and reading and writing a disk over NBD
    repository/     stored data: memory > dedup > sharing > records > repository > packs > stores > format > crypto

The files beside this one are used everywhere: errors, control (interruption, events, progress), parallel, programs and
others.
A module of Ansible reads its options, calls one verb and returns the result of the verb.

The core path
-------------
A backup from its options to the published manifest, and back to a restored disk. Read these files in this order.

    errors.py                           the errors, one root
    grid.py                             the blocks of a disk: 64 KiB, from offset 0
    control.py                          interruption, events and progress
    blocks/extents.py                   arithmetic of byte ranges: changed or not, zero or not
    blocks/source.py                    the interface of a disk that is read
    blocks/nbd.py                       that interface over NBD
    hypervisor/disks.py                 disks of a domain, and whether changes of each can be tracked
    hypervisor/checkpoints.py           checkpoints and their dirty bitmaps
    hypervisor/backup_job.py            the backup job of libvirt: a frozen view of the disks
    repository/format/packs.py          a pack: many blocks in one immutable object
    repository/format/maps.py           an extent map: in which pack each block of a disk is
    repository/format/manifests.py      a restore point and its manifest
    repository/stores/base.py           the interface of an object store
    repository/packs/writer.py          writes blocks into packs
    repository/packs/reader.py          reads them back and proves them
    repository/repository.py            opens, creates, lists, reads
    repository/sharing/publishing.py    makes a restore point visible beside running collectors
    operations/point/parent_blocks.py   the blocks of the parent restore point
    operations/point/portion.py         reads one portion: zero, unchanged, stored already or new
    operations/point/disk_reader.py     reads a disk in portions, and makes its map
    operations/point/new_point.py       a restore point while it is made
    operations/backup/plan.py           decides how each disk is read, and why
    operations/backup/run.py            carries the plan out
    operations/backup/backup.py         the verb: request, result, order of the steps
    operations/restore/plan.py          which disk goes where, and whether it may
    operations/restore/disk_writer.py   writes one disk
    operations/restore/restore.py       the verb

Where to look
-------------
    a dirty extent becomes an entry of the map      operations/point/disk_reader.py, _enter
    a restore refuses a disk that is in use         operations/restore/plan.py, check_target
    retention decides which restore points stay     operations/upkeep/retention_rules.py, decide
    a new kind of store                             repository/stores/, and repository/location.py, open_store

Side doors
----------
Files that the core path imports. Their names are enough for a first reading.

    blocks/nbd_target.py
    blocks/throttle.py
    busy.py
    endpoint.py
    files.py
    hypervisor/agent.py
    hypervisor/connection.py
    hypervisor/domain.py
    hypervisor/free_space.py
    hypervisor/machine_files.py
    hypervisor/scratch.py
    hypervisor/storage_pools.py
    images/locks.py
    images/qcow2_layout.py
    images/qemu_img.py
    operations/backup/frozen_view.py
    operations/backup/preparation.py
    operations/backup/result.py
    operations/backup/situation.py
    operations/backup/spot_check.py
    operations/backup/transport.py
    operations/point/audit.py
    operations/point/machine_files.py
    operations/restore/machine.py
    operations/restore/result.py
    operations/restore/saved_machine.py
    operations/restore/targets.py
    operations/upkeep/healing.py
    parallel.py
    repository/crypto/keys.py
    repository/dedup/dedup.py
    repository/format/codecs.py
    repository/format/configuration.py
    repository/format/envelope.py
    repository/format/hooks.py
    repository/format/names.py
    repository/location.py
    repository/records/damage.py
    repository/selecting.py
    repository/sharing/condemned.py
    repository/sharing/holds.py
    repository/sharing/leases.py
    repository/sharing/removals.py
    repository/sharing/trash.py
    repository/sharing/wholeness.py
    repository/stores/reserve.py
    runtime.py

Dictionary
----------
extent          a range of bytes of a disk, dirty or not, or zero or not, as NBD reports it
block           64 KiB of a disk; the unit of tracking, comparing and storing
pack            an object that holds many blocks and a directory of them
block address   a pack, and the ordinal of a block in it
live block      a block that a restore point names; a pack with few of them is sparse
extent map      for one disk at one restore point: the pack and position of each block that is not zero
run             consecutive blocks of a disk that lie one after another in a pack; a map is a list of runs
manifest        the object that makes a restore point exist; it names all other objects of the point
restore point   a domain at one instant: its disks, definition and other files
checkpoint      libvirt's name for the instant from which QEMU records changes; it has a bitmap in each disk
bitmap          QEMU's record in a qcow2 image of which blocks changed
hook            a sampled block id, by which packs with similar content are found
draft           a manifest that is not published yet; a collector keeps what it names
hold            the object that keeps a restore point while a machine is served from it
lease           the object by which a writer shows that it is at work
condemned       listed for deletion after a grace period
trash           removed restore points that can still be brought back
envelope        the line of JSON with magic, version and checksum around the content of an object
slot            the master key of an encrypted repository, wrapped by one passphrase
scratch         files in which QEMU keeps the old content of blocks that a guest overwrites during a backup
docs/repository-format.md describes every object to the byte.
"""
