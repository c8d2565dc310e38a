# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine of kvm.cbt: plain Python that imports nothing from Ansible.

Layers
------
tests/unit/test_house.py checks the rules of this section and every list of files on this page.

    operations/     the verbs; the only place where the three folders below meet
    hypervisor/     libvirt and QEMU; uses images/, which runs qemu-img and reads image files
    blocks/         extents, and reading and writing a disk over NBD
    repository/     stored data: memory > dedup > sharing > records > views > repository > packs > stores > format
                    > crypto

hypervisor/, blocks/ and repository/ do not import one another. In the chain of repository/, each link may import those
to its right; the link "repository" is the files that are directly in the folder.

Every folder may import the files beside this one: errors.py, control.py (interruption, events and progress),
parallel.py, programs.py and others. An Ansible module reads its options, calls one verb and returns its result.

The core path
-------------
From the options of a backup to the published manifest, and back to a restored disk. Read these files in this order.

    errors.py                           the exceptions; all derive from CbtError
    grid.py                             the blocks of a disk: 64 KiB, from offset 0
    control.py                          interruption, events and progress
    blocks/extents.py                   arithmetic of byte ranges: changed or not, zero or not
    blocks/source.py                    the interface of a disk that is read
    blocks/nbd.py                       that interface over NBD
    hypervisor/domain_xml/disks.py      disks of a domain, and whether changes of each can be tracked
    hypervisor/checkpoints.py           checkpoints and their dirty bitmaps
    hypervisor/backup_job.py            the backup job of libvirt: a frozen view of the disks
    repository/format/packs.py          a pack: many blocks in one immutable object
    repository/format/maps.py           an extent map: in which pack each block of a disk is
    repository/format/manifests.py      a restore point and its manifest
    repository/stores/base.py           the interface of an object store
    repository/packs/writer.py          writes blocks into packs
    repository/packs/reader.py          reads blocks back, and checks each against its id
    repository/repository.py            opens a repository, lists and reads restore points
    repository/sharing/publishing.py    makes a restore point visible while collectors may run
    operations/point/parent_blocks.py   the blocks of the parent restore point
    operations/point/portion.py         reads one portion: each block is zero, unchanged, already stored or new
    operations/point/disk_reader.py     reads a disk in portions, and makes its map
    operations/point/new_point.py       creates a restore point: packs, maps and files, and last the manifest
    operations/backup/plan.py           decides how each disk is read, and why
    operations/backup/run.py            carries the plan out: freezes, reads, publishes and tidies up
    operations/backup/backup.py         the verb: request, checks and plan, then the run
    operations/restore/plan.py          which disk goes where, and which targets are refused
    operations/restore/disk_writer.py   writes one disk
    operations/restore/restore.py       the verb

Where to look
-------------
    a dirty block is zero, unchanged, stored or new   operations/point/portion.py, read
    a dirty extent becomes an entry of the map        operations/point/disk_reader.py, read_ranges, _enter
    a restore refuses a disk that is in use           operations/restore/plan.py, check_target, check_in_place
    the rules of retention keep a restore point       operations/upkeep/retention_rules.py, decide
    a hold, a lock or undelete overrides the rules    operations/upkeep/retention_plan.py, make_plan, decide_all
    a guest is frozen, and always thawed              hypervisor/agent.py, frozen, settled
    the freeze encloses only the start of the view    operations/backup/frozen_view.py, running
    a backup runs, in order, from freeze to clean-up  operations/backup/run.py, carry_out
    packs, maps and files precede the manifest        operations/point/new_point.py, publish
    a manifest becomes visible                        repository/sharing/publishing.py, publish
    the SDK repeats a request to S3, which is logged  repository/stores/s3_client.py, _report_retry
    an answer that breaks off is read again, logged   repository/stores/s3_store.py, _read
    an event becomes a line of the log                control.py, note, and log.py, event
    a client of an export gets an error               blocks/server/transmission.py, _answer_in_pieces
    an export reads blocks that were moved            repository/views/disk_view.py, _newest
    a new kind of store                               repository/stores/, and repository/location.py, open_store

repository/stores/__init__.py lists what else a new kind of store needs. "Guarantees" and "Sharing a repository" in
docs/repository-format.md specify the order in which a restore point is published.

Side doors
----------
Other files that the core path imports. On a first reading, their names are enough.

    blocks/nbd_target.py
    blocks/throttle.py
    busy.py
    endpoint.py
    files.py
    hypervisor/agent.py
    hypervisor/connection.py
    hypervisor/domain_xml/disk_kinds.py
    hypervisor/domain.py
    hypervisor/free_space.py
    hypervisor/domain_xml/machine_files.py
    hypervisor/offline_export.py
    hypervisor/other_hosts.py
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
    operations/restore/definitions.py
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
block id        the digest of a block's content: SHA-256, or keyed with the master key in an encrypted repository
block address   a pack, and the ordinal of a block in it
live block      a block that a restore point names; a pack with few of them is sparse
extent map      for one disk at one restore point: the pack and position of each block that is not zero
run             in a map: consecutive blocks of a disk that are consecutive in a pack; a map is a list of runs.
                Elsewhere: one execution of a verb, as in "blocks stored in this run"
manifest        the object that makes a restore point exist; it names all other objects of the point
restore point   a domain at one instant: its disks, definition and other files
base            of a disk: the restore point with which it is compared, and whose map its new map continues
parent          of a restore point: the newest base of its disks
portion         the consecutive blocks that one worker takes at once
verb            what a user can ask for: a function in operations/ that a module calls
checkpoint      libvirt's name for the instant from which QEMU records changes; it has a bitmap in each disk
bitmap          QEMU's record in a qcow2 image of which blocks changed
frozen view     the disks as they were at one instant, served over NBD while the guest continues to write
freeze          of a guest: its agent holds back writes to file systems while the view starts; the option is quiesce
hook            a sampled block id, used to find packs with similar content
draft           a manifest that is not published yet; a collector keeps what it names
export          disks of a restore point that a server of kvm.cbt offers over NBD
view            a disk of a restore point that can be read at any offset
hold            the object that keeps a restore point while a machine is served from it
lease           the object that shows that a writer is still running
condemned       listed for deletion after a grace period
trash           removed restore points that can still be brought back
envelope        the line of JSON with magic, version and checksum around the content of an object
slot            the master key of an encrypted repository, wrapped by one passphrase
scratch         files in which QEMU keeps the old content of blocks that a guest overwrites during a backup

docs/repository-format.md describes every object byte by byte.
"""

from . import zipped  # the only import of a package

zipped.compile_once(__name__, __spec__.loader)
