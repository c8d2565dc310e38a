# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that the tests must notice, for ``mutants.py``."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """A fault: in a file of the engine a text that is there exactly once is replaced. ``tests`` are those that must fail, below tests."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


# What a disk holds: the zero rule, the last block, what two contexts report.

CONTENT = (
    Mutation(
        "dirty zeroes are left out",
        "blocks/extents.py",
        "            yield Extent(offset, end - offset, state.zero)\n",
        "            if not state.zero:\n                yield Extent(offset, end - offset, state.zero)\n",
        ("unit/blocks/test_extents.py::test_a_dirty_extent_that_reads_as_zero_becomes_an_explicit_zero_range",),
    ),
    Mutation(
        "a zero range inherits the parent's blocks",
        "repository/format/maps.py",
        '        """Record that these blocks are zero now."""\n        self._settle(first, count)\n',
        '        """Record that these blocks are zero now."""\n        self._settle(first, 0)\n',
        ("unit/repository/format/test_map_builder.py::test_a_zero_range_cuts_the_parents_run_out",),
    ),
    Mutation(
        "the longer of two extents counts",
        "blocks/extents.py",
        "            end = min(extent.end, state.end)\n",
        "            end = extent.end\n",
        ("unit/blocks/test_extents.py::test_a_hole_inside_a_dirty_extent_is_zero_and_its_neighbours_are_read",),
    ),
    Mutation(
        "a hole counts as zero",
        "blocks/nbd.py",
        "_ZERO = 2 ",
        "_ZERO = 3 ",
        ("unit/blocks/test_nbd_extents.py::test_only_the_zero_bit_spares_a_read",),
    ),
    Mutation(
        "a block that is partly zero counts as zero",
        "blocks/extents.py",
        "        inner_stop = stop if extent.end >= size else extent.end // BLOCK_SIZE\n",
        "        inner_stop = stop\n",
        ("unit/blocks/test_extents.py::test_a_short_last_block_is_read_if_zero_stops_before_the_end_of_the_disk",),
    ),
    Mutation(
        "a block of another length is written to the disk",
        "repository/packs/reader.py",
        "            if isinstance(block, DamagedObject) or len(block) == block_length(run.first + index, size):\n",
        "            if True:\n",
        ("unit/repository/packs/test_packs.py::test_a_block_that_is_not_as_long_as_the_disks_is_damaged",),
    ),
    Mutation(
        "a disk that was resized is built on",
        "operations/backup/plan.py",
        "    if disk.virtual_size != record.size:\n",
        "    if False:\n",
        (
            "unit/operations/backup/test_backup_plan.py::test_auto_reads_in_full_where_changes_are_not_known_and_says_why",
        ),
    ),
    Mutation(
        "a bitmap of another disk is believed",
        "hypervisor/checkpoints.py",
        "    if identities == (disk.target,):\n",
        "    if True:\n",
        (
            "unit/operations/backup/test_backup_plan.py::test_auto_reads_in_full_where_changes_are_not_known_and_says_why",
        ),
    ),
)

# What proves that an object is what was written.

PROOFS = (
    Mutation(
        "the checksum of a block is not checked",
        "repository/format/packs.py",
        "    if keys.block_id(data) != block.digest:\n",
        "    if False:\n",
        ("unit/repository/packs/test_pack_damage.py",),
    ),
    Mutation(
        "the checksum of a map is not checked",
        "repository/format/maps.py",
        "    if proof.digest() != data[HEADER.size : HEADER.size + 32]:\n        raise",
        "    if False:\n        raise",
        ("unit/repository/format/test_maps.py::test_every_flipped_bit_is_noticed_by_the_map_or_by_the_manifest",),
    ),
    Mutation(
        "the checksum of a file is not checked",
        "repository/repository.py",
        "        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:\n",
        "        if len(data) != file.size:\n",
        (
            "unit/repository/test_repository.py::test_a_replaced_truncated_or_missing_file_is_detected",
            "unit/repository/test_repository_v1.py::test_the_configuration_of_every_point_is_read",
        ),
    ),
    Mutation(
        "the checksum of a manifest is not checked",
        "repository/format/envelope.py",
        "    if _digest(kind, found, match.group(4)) != match.group(3).decode():\n",
        "    if False:\n",
        ("unit/repository/format/test_manifests.py::test_every_flipped_bit_of_a_manifest_is_damage",),
    ),
    Mutation(
        "a manifest counts in the place of another",
        "repository/format/manifests.py",
        "    if name != names.manifest(point.uuid, point.id):\n",
        "    if False:\n",
        ("unit/repository/format/test_manifests.py::test_a_manifest_in_anothers_place_is_damage",),
    ),
    Mutation(
        "a map of a disk of another size is read",
        "repository/format/maps.py",
        "    if wanted is not None and size != wanted:\n",
        "    if False:\n",
        ("unit/repository/test_repository.py::test_a_map_is_read_for_its_disk_alone",),
    ),
    Mutation(
        "zlib unpacks whatever a payload promises",
        "repository/format/codecs.py",
        "            piece = engine.decompress(rest, min(left, _PIECE))\n",
        "            piece = engine.decompress(rest)[: min(left, _PIECE)]\n",
        (
            "unit/repository/format/test_codecs.py::test_a_payload_that_unpacks_to_more_than_the_block_costs_no_more_memory_than_the_block",
        ),
    ),
    Mutation(
        "zstd unpacks whatever a frame promises",
        "repository/format/zstd.py",
        "        if self._module.frame_content_size(payload) not in (length, -1):\n",
        "        if False:\n",
        (
            "unit/repository/format/test_codecs.py::test_a_payload_that_unpacks_to_more_than_the_block_costs_no_more_memory_than_the_block",
        ),
    ),
    Mutation(
        "a map takes the memory its header asks for",
        "repository/format/maps.py",
        "    if expected > len(data) * 1100:\n",
        "    if bytearray(expected) is None:\n",
        ("unit/repository/format/test_maps.py::test_a_header_that_lies_is_damage_and_takes_no_memory",),
    ),
)

# What is visible when: publishing, removing, collecting.

ORDER = (
    Mutation(
        "a pack appears before it is complete",
        "repository/packs/writer.py",
        "        self.upload.write([ending], self.end)\n        self.upload.commit()\n",
        "        self.upload.commit()\n        self.upload.write([ending], self.end)\n",
        ("unit/repository/packs/test_packs.py",),
    ),
    Mutation(
        "an object appears before it is on the disk",
        "repository/stores/directory.py",
        "            os.fsync(self._handle)\n",
        "",
        (
            "unit/repository/stores/test_directory_store.py::test_a_commit_syncs_the_file_first_and_its_folder_afterwards",
        ),
    ),
    Mutation(
        "a manifest is put before what is lost is stored again",
        "repository/sharing/publishing.py",
        "            began = draft(point)\n",
        "            began = draft(point)\n            repository.publish(point)\n",
        ("unit/repository/sharing/test_engine_beside_others.py",),
    ),
    Mutation(
        "a writer does not check what is condemned",
        "repository/sharing/condemned.py",
        "    found = set(filter(None, map(names.announced, repository.store.list(names.CONDEMNED))))\n",
        "    found: t.Set[str] = set()\n",
        (
            "unit/repository/sharing/test_sharing.py::test_a_writer_sees_what_a_collector_is_about_to_delete_even_where_the_announcement_was_taken_back",
        ),
    ),
    Mutation(
        "a writer does not check what is doomed",
        "repository/sharing/condemned.py",
        "    for name in list(repository.store.list(names.DOOMED)):\n",
        "    for name in ():\n",
        (
            "unit/repository/sharing/test_sharing.py::test_a_writer_sees_what_a_collector_is_about_to_delete_even_where_the_announcement_was_taken_back",
        ),
    ),
    Mutation(
        "a writer does not check what is gone",
        "repository/sharing/wholeness.py",
        "        except UnreadableObject:\n            return True\n",
        "        except UnreadableObject:\n            return False\n",
        ("unit/repository/sharing/test_engine_beside_others.py",),
    ),
    Mutation(
        "a writer checks for missing objects before condemned ones",
        "repository/sharing/publishing.py",
        "    pending = objects.keys() & condemned.pending_deletion(repository)\n"
        "    return pending | unsound(\n"
        "        repository,\n"
        "        {name: size for name, size in objects.items() if name not in pending and (new is None or name in new)},\n"
        "    )\n",
        "    gone = unsound(repository, {name: size for name, size in objects.items() if new is None or name in new})\n"
        "    return gone | (objects.keys() & condemned.pending_deletion(repository))\n",
        ("unit/repository/sharing/test_publishing.py::test_what_a_collector_deletes_between_any_two_requests_is_lost",),
    ),
    Mutation(
        "a pack that was cut off counts as there",
        "repository/sharing/wholeness.py",
        "            return repository.store.size(name) != objects[name]\n",
        "            repository.store.size(name)\n            return False\n",
        ("unit/repository/sharing/test_publishing.py::test_a_pack_of_another_size_is_lost",),
    ),
    Mutation(
        "a manifest is deleted before its entry is in the trash",
        "repository/sharing/trash.py",
        "            entries.append(_keep(repository, point, manifest))\n",
        "            repository.store.delete(name)\n            entries.append(_keep(repository, point, manifest))\n",
        (
            "unit/operations/upkeep/test_store_faults_of_upkeep.py::test_no_point_is_lost_and_the_next_run_continues_after_any_failed_call",
        ),
    ),
    Mutation(
        "a collector does not check a second time",
        "repository/sharing/collector.py",
        "            if again.needs(name) or began.elapsed() >= _FRESH:\n",
        "            if began.elapsed() >= _FRESH:\n",
        ("unit/repository/sharing/test_engine_beside_others.py",),
    ),
    Mutation(
        "a collector has no grace",
        "repository/sharing/collector.py",
        "for name, size in sizes.items() if now - announced.get(name, now) >= grace}",
        "for name, size in sizes.items()}",
        ("unit/repository/test_repository_v1.py::test_a_condemned_object_is_deleted_only_after_the_grace_period",),
    ),
    Mutation(
        "a lease spares nothing",
        "repository/sharing/collector.py",
        "min([*alive, self._now])",
        "self._now",
        ("unit/repository/test_repository_v1.py::test_what_a_session_at_work_stored_is_spared_by_its_lease_alone",),
    ),
    Mutation(
        "an announcement of what is needed stays",
        "repository/sharing/collector.py",
        "self._reprieve(plan.idle)",
        "self._reprieve(())",
        (
            "unit/repository/sharing/test_collector.py::test_the_announcement_of_a_needed_object_is_withdrawn_and_others_keep_their_time",
        ),
    ),
    Mutation(
        "a repository that shrank is collected unasked",
        "repository/sharing/collector.py",
        "        if 0 < before >= found.points * 2 and not confirmed:\n",
        "        if False:\n",
        ("unit/repository/sharing/test_collector.py::test_far_fewer_points_than_the_last_time_ask_for_confirmation",),
    ),
    Mutation(
        "a point that is removed while it is moved comes back",
        "repository/sharing/publishing.py",
        "            trash.remove(repository, point)\n",
        "            pass\n",
        (
            "unit/repository/sharing/test_relocation.py::test_a_point_removed_at_any_operation_stays_removed_and_can_be_brought_back",
        ),
    ),
)

# What is kept, and what ends a run.

RULES = (
    Mutation(
        "rules may leave nothing",
        "operations/upkeep/retention_plan.py",
        "        if goes and not stays and not request.allow_empty:\n",
        "        if False:\n",
        (
            "unit/operations/upkeep/test_retention.py::test_rules_that_take_nothing_are_refused_whatever_stays_without_them",
        ),
    ),
    Mutation(
        "a pinned point is not kept",
        "operations/upkeep/retention_rules.py",
        "        if point.pinned:\n",
        "        if False:\n",
        ("unit/operations/upkeep/test_retention_rules.py::test_pinned_points_stay_and_count_for_no_rule",),
    ),
    Mutation(
        "space is reclaimed while a manifest is damaged",
        "operations/upkeep/retention_plan.py",
        "request.collect and not unreadable\n",
        "request.collect\n",
        ("unit/repository/sharing/test_collector.py::test_while_a_manifest_is_damaged_nothing_is_reclaimed",),
    ),
    Mutation(
        "a pack that a removed point needs is emptied",
        "operations/upkeep/live_blocks.py",
        "count(bits | recoverable.get(ref, 0))",
        "count(bits)",
        (
            "unit/repository/sharing/test_collector.py::test_what_a_removed_point_needs_is_not_worth_a_compaction_until_it_cannot_be_brought_back",
        ),
    ),
    Mutation(
        "check mode counts blocks of points that the run removes as live",
        "operations/upkeep/retention.py",
        "[point for point in points if point.key not in gone], left)",
        "points, left)",
        ("unit/repository/sharing/test_collector.py::test_what_check_mode_predicts_is_what_the_run_does",),
    ),
    Mutation(
        "a restored file has its name before it is complete",
        "operations/restore/disk_writer.py",
        '    return f"{path}.partial-{secrets.token_hex(4)}"\n',
        "    return path\n",
        ("unit/operations/restore/test_restore_files.py::test_a_file_has_its_name_only_once_it_is_complete",),
    ),
    Mutation(
        "a file that appeared meanwhile is replaced unasked",
        "operations/restore/restore.py",
        "        elif not rename_new(partial, final):\n",
        "        elif os.replace(partial, final):  # type: ignore[func-returns-value]\n",
        (
            "unit/operations/restore/test_restore_files.py::test_a_file_of_another_that_appears_at_the_last_moment_stays_unless_by_force",
        ),
    ),
    Mutation(
        "a repository is created where it cannot be kept",
        "repository/stores/trial.py",
        "            if fault is not None:\n",
        "            if False:\n",
        (
            "unit/repository/stores/test_odd_directories.py::test_a_repository_is_not_created_where_it_could_not_be_kept",
        ),
    ),
    Mutation(
        "a sweep trusts locks that everyone is granted",
        "repository/stores/directory.py",
        "            for name in left if left and _locks_exclude(folder) else ():\n",
        "            for name in left:\n",
        (
            "unit/repository/stores/test_odd_directories.py::test_a_repository_is_kept_in_spite_of_an_odd_rule_that_is_reported",
        ),
    ),
    Mutation(
        "a temporary file that was swept before it was locked is used",
        "repository/stores/directory.py",
        "            if not lock(handle) or exists(name, folder):\n",
        "            lock(handle)\n            if handle:\n",
        ("unit/repository/stores/test_odd_directories.py::test_a_file_swept_before_it_was_locked_is_not_used",),
    ),
    Mutation(
        "an open file that another host deleted is an error of the storage",
        "repository/stores/directory.py",
        "    if error.errno == errno.ESTALE:\n",
        "    if False:\n",
        (
            "unit/repository/stores/test_odd_directories.py::test_a_listing_of_a_folder_that_another_host_deleted_is_empty",
        ),
    ),
    Mutation(
        "a wish to stop is not heeded",
        "control.py",
        "        if self._reason is not None:\n",
        "        if False:\n",
        ("unit/test_parallel_errors.py::test_an_interrupt_before_the_start_ends_it_at_once",),
    ),
)

# Guards on a hypervisor: only tests on a real libvirt and QEMU notice that one is missing.

GUARDS = (
    Mutation(
        "a host that did not report is taken for one that answered",
        "hypervisor/other_hosts.py",
        "    silent = list(others.silent)\n",
        "    silent = []\n",
        ("unit/hypervisor/test_other_hosts.py",),
    ),
    Mutation(
        "a device has image locks",
        "images/locks.py",
        "        if not stat.S_ISREG(os.stat(real).st_mode):\n            return False\n",
        "",
        ("unit/hypervisor/test_other_hosts.py",),
    ),
    Mutation(
        "bitmaps are removed from disks that are left out",
        "operations/backup/plan.py",
        "        policy = dataclasses.replace(policy, mode=COPY if policy.mode in (FULL, COPY) else DIFFERENTIAL)\n",
        "        pass\n",
        ("unit/hypervisor/test_other_hosts.py::test_a_disk_that_is_left_out_keeps_its_bitmaps",),
    ),
    Mutation(
        "a scratch directory may fill up",
        "hypervisor/free_space.py",
        "        if not usage.short and usage.free >= recent[0] - usage.free:\n",
        "        if True:\n",
        (
            "integration/test_space.py::test_a_scratch_directory_that_fills_up_ends_the_backup_before_the_guest_sees_an_error[slow]",
        ),
    ),
    Mutation(
        "a backup begins where there is no room",
        "operations/backup/run.py",
        "            directory.require_room()\n",
        "            pass\n",
        ("integration/test_space.py::test_a_backup_without_enough_space_is_refused_before_it_begins[scratch_dir]",),
    ),
    Mutation(
        "a bitmap that was not closed is believed",
        "hypervisor/domain_xml/disks.py",
        'inconsistent="in-use" in raw["flags"]',
        "inconsistent=False",
        ("integration/test_offline.py::test_a_bitmap_that_was_not_closed_is_not_trusted",),
    ),
    Mutation(
        "a backing image of a running domain is written over",
        "hypervisor/domain.py",
        'iterfind("./devices/disk//source")',
        'iterfind("./devices/disk/source")',
        ("integration/test_restore_targets.py::test_a_backing_image_of_a_running_domain_is_never_replaced",),
    ),
    Mutation(
        "a device in use is written over",
        "operations/restore/plan.py",
        "os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC",
        "os.O_WRONLY | os.O_CLOEXEC",
        ("integration/test_restore_targets.py::test_a_device_must_be_free_and_large_enough",),
    ),
    Mutation(
        "an image that is there is written over unasked",
        "operations/restore/plan.py",
        "    if not force:\n        raise Refused(\n"
        '            f"Cannot restore {plan.target} to {plan.path}: it exists already.',
        "    if False:\n        raise Refused(\n"
        '            f"Cannot restore {plan.target} to {plan.path}: it exists already.',
        ("integration/test_bad_input.py::test_an_existing_image_and_a_running_domains_disk_are_not_overwritten",),
    ),
    Mutation(
        "an image in use by another process is written over",
        "images/locks.py",
        "    return bool(_LOCK.unpack(answer)[0] != fcntl.F_UNLCK)\n",
        "    return False\n",
        ("integration/test_bad_input.py::test_an_existing_image_and_a_running_domains_disk_are_not_overwritten",),
    ),
    Mutation(
        "a running domain is replaced",
        "operations/restore/machine.py",
        '        if domain.api.isActive():\n            raise Refused(f"{what} and is running.',
        '        if False:\n            raise Refused(f"{what} and is running.',
        (
            "integration/test_restore_accidents.py::test_an_existing_domain_is_replaced_only_on_request_and_never_while_it_runs",
        ),
    ),
    Mutation(
        "a job of another tool is not respected",
        "operations/backup/backup.py",
        "        preparation.check_job(domain, read_domain(domain), request.abort_foreign_job)\n",
        "",
        ("integration/test_bad_input.py::test_a_foreign_job_is_reported_and_left_alone",),
    ),
    *(
        Mutation(
            f"a guest that has run is shut off: {row}",
            "hypervisor/paused_start.py",
            old,
            new,
            (
                "unit/hypervisor/test_paused_start.py"
                f"::test_a_domain_was_left_started_if_this_user_started_it_and_its_guest_never_ran[{row}]",
            ),
        )
        for row, old, new in (
            ("resumed and paused", '["status"] == "prelaunch")', '["status"] != "")'),
            ("resumed, paused and reset", 'if any(domain.api.blockStats("")[:4]):', "if False:"),
            (
                "reverted to a snapshot",
                "domain.api.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]",
                "domain.api.state()[0] == libvirt.VIR_DOMAIN_PAUSED",
            ),
        )
    ),
    Mutation(
        "the freeze of another program is not left alone",
        "hypervisor/agent.py",
        "        if before == _FROZEN:\n",
        "        if False:\n",
        (
            "unit/hypervisor/test_agent.py::test_a_guest_is_thawed_if_this_program_froze_it[was frozen by another program]",
        ),
    ),
    Mutation(
        "a freeze whose answer is lost is forgotten",
        "hypervisor/agent.py",
        "            self._uncertain = True\n            self.note",
        "            self._uncertain = False\n            self.note",
        (
            "unit/hypervisor/test_agent.py::test_a_guest_is_thawed_if_this_program_froze_it[freezes, but the answer is lost]",
        ),
    ),
    Mutation(
        "a guest that thawed by itself counts as frozen",
        "hypervisor/agent.py",
        "            if thawed < self._frozen:\n",
        "            if False:\n",
        (
            "unit/hypervisor/test_agent.py::test_a_guest_is_thawed_if_this_program_froze_it[thaws one file system by itself]",
        ),
    ),
    Mutation(
        "a start consumes a saved memory",
        "operations/backup/preparation.py",
        "    if domain.api.hasManagedSaveImage():\n",
        "    if False:\n",
        ("integration/test_states.py::test_a_domain_saved_to_disk_continues_after_its_backup",),
    ),
    Mutation(
        "a checkpoint stays after a backup that failed",
        "operations/backup/run.py",
        "            undo.callback(self._forget_checkpoint)\n",
        "",
        (
            "integration/test_interruption.py::test_an_error_in_any_phase_leaves_nothing_and_the_next_run_is_incremental[reading]",
        ),
    ),
)

TRUST = (
    Mutation(
        "a passphrase is read from a file that anyone can read",
        "repository/crypto/passphrase.py",
        "    if status.st_mode & _OTHERS:\n",
        "    if status.st_mode & _OTHERS & stat.S_IWGRP:\n",
        ("unit/repository/crypto/test_passphrase.py::test_a_file_that_others_can_read_or_change_is_refused",),
    ),
    Mutation(
        "the error of a command shows the passphrase",
        "programs.py",
        "{said.replace(printed, '********') if printed else said}",
        "{said}",
        ("unit/repository/crypto/test_passphrase.py::test_a_command_that_fails_is_named_without_its_output",),
    ),
    Mutation(
        "a folder of a repository may be a link",
        "repository/stores/folders.py",
        "_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW\n",
        "_FOLDER = os.O_PATH | os.O_DIRECTORY\n",
        ("unit/repository/stores/test_hostile_directory.py",),
    ),
    Mutation(
        "an object of any size is read",
        "repository/stores/base.py",
        "    if size > limit:\n",
        "    if False:\n",
        ("unit/repository/stores/test_hostile_directory.py",),
    ),
    Mutation(
        "an object may have any name",
        "repository/format/names.py",
        '    if parsed(name) is None:\n        raise DamagedObject(f"No object of a repository',
        '    if False:\n        raise DamagedObject(f"No object of a repository',
        ("unit/repository/format/test_names.py", "unit/repository/stores/test_directory_store.py"),
    ),
    Mutation(
        "a manifest may name anything",
        "repository/format/manifests.py",
        "        check(point)\n",
        "        pass\n",
        ("unit/repository/format/test_manifests.py", "unit/repository/test_hostile_values.py"),
    ),
    Mutation(
        "a repository that went back is taken",
        "repository/sharing/removals.py",
        "    return not (\n        exists(repository, key) or",
        "    return not (\n        True or",
        ("unit/repository/memory/test_known_state.py",),
    ),
)

_DEFINITIONS = ("unit/operations/restore/test_allowed_definitions.py",)

DEFINITIONS = (
    Mutation(
        "RAW firmware variables of the host are opened as qcow2",
        "operations/restore/machine_xml.py",
        'ending = "qcow2" if nvram is not None and nvram.get("format") == "qcow2" else "fd"',
        'ending = "fd"',
        (
            "unit/operations/restore/test_allowed_definitions.py"
            "::test_firmware_variables_stay_only_in_the_machines_own_libvirt_path",
        ),
    ),
    Mutation(
        "every definition is trusted",
        "operations/restore/machine_xml.py",
        "root = self._root if self._machine.trusted else self._allowed()",
        "root = self._root",
        ("unit/operations/restore/test_allowed_definitions.py", "integration/test_hostile_definitions.py"),
    ),
    Mutation(
        "what a machine needs and may not have is left out",
        "operations/restore/machine_xml.py",
        "        if found.refused:\n",
        "        if False:\n",
        _DEFINITIONS,
    ),
    Mutation(
        "the host in a manifest makes a device of the host stay",
        "operations/restore/machine_xml.py",
        "root = self._root if self._machine.trusted else self._allowed()",
        "root = self._root if self._machine.trusted or self._machine.keep_host_devices else self._allowed()",
        _DEFINITIONS,
    ),
    Mutation(
        "a medium of the host stays in its drive",
        "operations/restore/machine_xml.py",
        "here = self._machine.trusted and (",
        "here = (",
        _DEFINITIONS,
    ),
    Mutation(
        "a copy is connected to a network that leads out of the host",
        "operations/restore/isolation.py",
        'find("forward") is not None',
        'find("forward") is None',
        ("unit/operations/restore/test_isolation.py",),
    ),
    Mutation(
        "devices in a second list are not looked at",
        "operations/restore/machine_xml.py",
        'for more in self._root.findall("devices")[1:]:',
        'for more in self._root.findall("devices")[2:]:',
        ("unit/operations/restore/test_machine_xml.py",),
    ),
    Mutation(
        "an element that the table does not have is taken",
        "hypervisor/allowed/filtering.py",
        "        if rule is None or any(",
        "        if rule is None:\n            return element\n        if any(",
        _DEFINITIONS,
    ),
    Mutation(
        "an attribute that the table does not have is taken",
        "hypervisor/allowed/filtering.py",
        '_NOTHING = Value("NONE")',
        '_NOTHING = Value("TEXT")',
        _DEFINITIONS,
    ),
    Mutation(
        "an element stays without what is essential",
        "hypervisor/allowed/filtering.py",
        "            if path in ALLOWED and ALLOWED[path].essential:\n",
        "            if False:\n",
        _DEFINITIONS,
    ),
    Mutation(
        "what was removed is not named",
        "operations/restore/machine_xml.py",
        "        self._changes += found.changes\n",
        "",
        _DEFINITIONS,
    ),
    Mutation(
        "a word may be a path",
        "hypervisor/allowed/values.py",
        '"WORD": r"[^/\\x00-\\x1f\\x7f-\\x9f]*"',
        '"WORD": r"[^\\x00-\\x1f\\x7f-\\x9f]*"',
        ("unit/operations/restore/test_allowed_definitions.py::test_only_free_text_values_may_contain_a_path",),
    ),
    Mutation(
        "firmware may be anywhere by a way up",
        "hypervisor/allowed/values.py",
        "(os.path.normpath(path) == path and ",
        "(True and ",
        _DEFINITIONS,
    ),
    Mutation(
        "a file of any path is the machine's own",
        "hypervisor/allowed/values.py",
        "        return value in host.paths\n",
        "        return True\n",
        _DEFINITIONS,
    ),
    Mutation(
        "libvirt is given the definition of the repository",
        "operations/restore/machine.py",
        "    return MachinePlan(session, name, its_uuid, adapted.xml, ",
        "    return MachinePlan(session, name, its_uuid, xml, ",
        ("unit/operations/restore/test_hostile_points.py",),
    ),
    Mutation(
        "the module trusts definitions by itself",
        "operations/restore/machine.py",
        "        trusted=options.trust_definition,\n",
        "        trusted=True,\n",
        ("unit/operations/restore/test_hostile_points.py",),
    ),
    Mutation(
        "firmware that machines share is opened for writing",
        "operations/restore/machine_xml.py",
        '                loader.set("readonly", "yes")\n',
        "",
        _DEFINITIONS,
    ),
)

# Checks for sessions that are held up, for requests that hang, and for clocks that are wrong.

LATE = (
    Mutation(
        "a writer checks before its draft is there",
        "repository/sharing/publishing.py",
        "            began = draft(point)\n            gone = missing(repository, point)\n",
        "            gone = missing(repository, point)\n            began = draft(point)\n",
        ("unit/repository/sharing/test_engine_beside_others.py",),
    ),
    Mutation(
        "a writer does not ask for what it stored itself",
        "repository/sharing/publishing.py",
        "            gone = missing(repository, point)\n",
        "            gone = missing(repository, point, ())\n",
        ("unit/repository/sharing/test_clocks.py", "unit/repository/test_forged_objects.py"),
    ),
    Mutation(
        "a writer that was held up after it looked publishes",
        "repository/sharing/publishing.py",
        "            if began.elapsed() >= _FRESH:\n                continue  # the lookups took too long: look at the draft again\n",
        "",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "a manifest that came too late counts",
        "repository/sharing/publishing.py",
        "if repository.publish(point, replaces) and looked.elapsed() < STEADY:",
        "if repository.publish(point, replaces):",
        ("unit/repository/sharing/test_late_requests.py",),
    ),
    Mutation(
        "a session that was held up after it looked replaces a manifest",
        "repository/sharing/publishing.py",
        "        if began.elapsed() >= _FRESH:\n            return False\n        repository.publish(after)\n",
        "        repository.publish(after)\n",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "a manifest that another run replaced is replaced",
        "repository/sharing/publishing.py",
        " or not stands(repository, before):",
        ":",
        ("unit/repository/sharing/test_relocation.py::test_a_concurrently_changed_manifest_keeps_its_change",),
    ),
    Mutation(
        "a replaced manifest that came too late is not looked at again",
        "repository/sharing/publishing.py",
        "            looked.elapsed() < STEADY or _settled(repository, before, after, records)\n",
        "            True\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a late manifest that another run replaced is given up for an older one",
        "repository/sharing/publishing.py",
        "if not stands(repository, put) or _removed_again(repository, put, records):",
        "if _removed_again(repository, put, records):",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a point that is removed while it is given back what it named comes back",
        "repository/sharing/publishing.py",
        "if not stands(repository, put) or _removed_again(repository, put, records):",
        "if not stands(repository, put):",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a manifest that was put to mend a late one is not looked at",
        "repository/sharing/publishing.py",
        "_ATTEMPTS = 3 ",
        "_ATTEMPTS = 1 ",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a point whose late manifest is about to be made good is moved",
        "repository/sharing/publishing.py",
        "_lacks(repository, after, new) or is_given_back(repository, before, after)\n",
        "_lacks(repository, after, new)\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a point gets a map back that is about to be deleted",
        "repository/sharing/publishing.py",
        "        other = with_whole_maps(repository, before, going) or with_whole_maps(repository, before)\n",
        "        other = with_whole_maps(repository, before)\n",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "a late repair counts as an attempt",
        "repository/sharing/publishing.py",
        "        attempts -= looked.elapsed() < STEADY  #",
        "        attempts -= 1  #",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a copy delayed while it looked for another one publishes",
        "repository/sharing/publishing.py",
        "            other = whole_point(repository, *point.key) if yields else None\n"
        "            if other is not None and other not in put:\n"
        "                return other\n"
        "            replaces = not yields or bool(put) or _exists(repository, point)\n"
        "            if began.elapsed() >= _FRESH:\n",
        "            late = began.elapsed() >= _FRESH\n"
        "            other = whole_point(repository, *point.key) if yields else None\n"
        "            if other is not None and other not in put:\n"
        "                return other\n"
        "            replaces = not yields or bool(put) or _exists(repository, point)\n"
        "            if late:\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a point that is brought back late replaces its copy",
        "operations/upkeep/retention.py",
        "    publishing.publish(lease, point, lost, yields=True)\n",
        "    publishing.publish(lease, point, lost)\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "the trash says nothing of a removal meanwhile",
        "repository/sharing/publishing.py",
        "    if not (trash.contains(repository, point) or removals.recorded(repository, point.key, records)):\n",
        "    if not removals.recorded(repository, point.key, records):\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "records say nothing of a removal meanwhile",
        "repository/sharing/publishing.py",
        "    if not (trash.contains(repository, point) or removals.recorded(repository, point.key, records)):\n",
        "    if not trash.contains(repository, point):\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "an old record counts as a removal meanwhile",
        "repository/sharing/publishing.py",
        "removals.recorded(repository, point.key, records)",
        "removals.recorded(repository, point.key)",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a point that was brought back meanwhile is removed for a late manifest",
        "repository/sharing/publishing.py",
        "    if stands(repository, point):\n        try:\n",
        "    if True:\n        try:\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "an entry of the trash names what is gone",
        "repository/sharing/publishing.py",
        "            withdraw(repository, point.key)  # no entry of the trash may name lost objects\n",
        "            trash.remove(repository, point)\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a point that is withdrawn is not recorded as removed",
        "repository/sharing/publishing.py",
        "    removals.record(repository, [key])\n",
        "",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a removal that is late deletes the manifest all the same",
        "repository/sharing/trash.py",
        "            if began.elapsed() < _FRESH:\n                break\n",
        "            break\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "the trash is not looked at again after a late removal",
        "repository/sharing/trash.py",
        "    if entries and first.elapsed() >= _FRESH:\n",
        "    if False:\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a late removal leaves entries that name what is gone",
        "repository/sharing/trash.py",
        "        removals.record(repository, [point.key])\n    _withdraw(repository, entries)\n",
        "        removals.record(repository, [point.key])\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a removal that took days is not recorded",
        "repository/sharing/trash.py",
        "    if not removals.exists(repository, point.key):\n",
        "    if False:\n",
        ("unit/repository/sharing/test_late_requests.py",),
    ),
    Mutation(
        "a late removal leaves no entry",
        "repository/sharing/trash.py",
        "        entries = [*entries, _keep(repository, point, manifests.encode(removed))]\n",
        "",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a collector that was held up deletes what it listed",
        "repository/sharing/collector.py",
        "            if again.needs(name) or began.elapsed() >= _FRESH:\n",
        "            if again.needs(name):\n",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "a collector deletes what a late session gives a point back",
        "repository/sharing/survey.py",
        "    absent: set[bytes | str] = {*found.packs, *found.files}\n",
        "    absent: set[bytes | str] = set()\n",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a collector deletes what a late session gives a point back while another one deletes",
        "repository/sharing/survey.py",
        "        elif each.name not in going:\n",
        "        else:\n",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "drafts and lists of a host whose clock is behind are deleted",
        "repository/sharing/collector.py",
        "names.DRAFTS: LAPSE + ASTRAY, names.DOOMED: LAPSE + ASTRAY,",
        "names.DRAFTS: LAPSE, names.DOOMED: LAPSE,",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "drafts and lists of sessions at work are deleted while clocks part",
        "repository/sharing/collector.py",
        "names.DRAFTS: LAPSE + ASTRAY, names.DOOMED: LAPSE + ASTRAY,",
        "names.DRAFTS: ASTRAY, names.DOOMED: ASTRAY,",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "drafts of dead sessions stay",
        "repository/sharing/collector.py",
        "{names.DRAFTS: LAPSE + ASTRAY, ",
        "{",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "leases go as soon as they lapsed",
        "repository/sharing/collector.py",
        "names.LEASES: LAPSE + self._grace}",
        "names.LEASES: LAPSE}",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "leases of dead sessions stay",
        "repository/sharing/collector.py",
        ", names.LEASES: LAPSE + self._grace}",
        "}",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "a young entry of the trash goes while its point exists",
        "repository/sharing/collector.py",
        "                or (exists and self._now - entry.modified <= LAPSE)\n",
        "",
        ("unit/repository/sharing/test_removals.py",),
    ),
    Mutation(
        "a draft of a host whose clock is behind counts for nothing",
        "repository/sharing/survey.py",
        "        if now - entry.modified <= LAPSE + ASTRAY:\n",
        "        if now - entry.modified <= LAPSE:\n",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "a draft counts for ever",
        "repository/sharing/survey.py",
        "        if now - entry.modified <= LAPSE + ASTRAY:\n",
        "        if True:\n",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "bringing a point back deletes the entry of a host whose clock is behind",
        "operations/upkeep/retention.py",
        "now - each.at > LAPSE + ASTRAY:",
        "now - each.at > LAPSE:",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "bringing a point back deletes the entry of a removal that is under way",
        "operations/upkeep/retention.py",
        "now - each.at > LAPSE + ASTRAY:",
        "now - each.at > ASTRAY:",
        ("unit/repository/sharing/test_late_replacements.py",),
    ),
    Mutation(
        "a span is measured by the clock that can be set alone",
        "repository/sharing/leases.py",
        "        return max(boot_clock() - self.boot, abs(wall_clock() - self.wall))\n",
        "        return abs(wall_clock() - self.wall)\n",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "a span is measured by the clock that may stand still alone",
        "repository/sharing/leases.py",
        "        return max(boot_clock() - self.boot, abs(wall_clock() - self.wall))\n",
        "        return boot_clock() - self.boot\n",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "a clock that was set back counts for nothing",
        "repository/sharing/leases.py",
        "abs(wall_clock() - self.wall)",
        "wall_clock() - self.wall",
        ("unit/repository/sharing/test_late_sessions.py",),
    ),
    Mutation(
        "a session does not heed that the store's clock was set back",
        "repository/sharing/leases.py",
        "            self.since = min(now, self.since) if self.since is not None else None\n",
        "            pass\n",
        ("unit/repository/sharing/test_clocks.py",),
    ),
)

FULL = (
    Mutation(
        "retention leaves the reserve alone",
        "repository/stores/reserve.py",
        "        self.spare = 0\n",
        "        self.spare = None\n",
        ("unit/repository/stores/test_full_store.py",),
    ),
    Mutation(
        "removing points takes all of the reserve",
        "repository/stores/reserve.py",
        "FOR_COLLECTING = 0.5 ",
        "FOR_COLLECTING = 0.0 ",
        ("unit/repository/stores/test_full_store.py",),
    ),
    Mutation(
        "the reserve is not made anew",
        "repository/stores/reserve.py",
        "            self.spare = None\n            self.keep()\n",
        "            self.spare = None\n",
        ("unit/repository/stores/test_full_store.py",),
    ),
    Mutation(
        "a backup takes the reserve",
        "repository/stores/reserve.py",
        "    spare: float | None = None\n",
        "    spare: float | None = 0\n",
        ("unit/repository/stores/test_full_store.py",),
    ),
    Mutation(
        "what could not be announced is deleted",
        "repository/sharing/collector.py",
        "if name not in left})\n",
        "})\n",
        ("unit/repository/sharing/test_collector.py",),
    ),
)

SHARING = (
    Mutation(
        "an announcement outranks a living lease",
        "repository/sharing/collector.py",
        "and each.modified < spared_from\n",
        "and (each.modified < spared_from or each.name in announced)\n",
        ("unit/repository/sharing/test_clocks.py",),
    ),
    Mutation(
        "a copy replaces the point that another one published",
        "repository/sharing/publishing.py",
        "            if other is not None and other not in put:\n",
        "            if False:\n",
        ("unit/operations/test_copies_at_once.py",),
    ),
    Mutation(
        "an object is exchanged whatever it is by now",
        "repository/stores/directory.py",
        "return stands() and self.get(name) == before and self.put(name, after)\n",
        "return self.put(name, after)\n",
        ("unit/repository/stores/test_stores.py",),
    ),
)

# What is in use stays, whoever removes or collects.

_BESIDE = "unit/repository/sharing/test_holds_beside_others.py"
HOLDS = (
    Mutation(
        "a collector does not know holds",
        "repository/sharing/survey.py",
        "    for name, taken in names.of_kind(repository.store.list(names.HOLDS), names.HOLD_KIND):\n        found.held.add(taken.point)\n",
        "    for name, taken in ():\n        found.held.add(taken.point)\n",
        (_BESIDE,),
    ),
    Mutation(
        "a removal does not look for holds",
        "repository/sharing/trash.py",
        "            _check_free(repository, point, entries)\n",
        "",
        (
            "unit/repository/sharing/test_holds.py::test_a_held_point_is_not_removed_by_anyone_and_the_error_says_what_to_do",
        ),
    ),
    Mutation(
        "a removal looks for holds before its entry is there",
        "repository/sharing/trash.py",
        "            entries.append(_keep(repository, point, manifest))\n            _check_free(repository, point, entries)\n",
        "            _check_free(repository, point, entries)\n            entries.append(_keep(repository, point, manifest))\n",
        (
            "unit/repository/sharing/test_holds_beside_others.py::test_a_hold_given_before_the_entry_of_a_removal_is_there_ends_the_removal",
        ),
    ),
    Mutation(
        "a removal does not look for holds once the manifest is gone",
        "operations/upkeep/retention.py",
        "        if late:\n",
        "        if False:\n",
        (_BESIDE,),
    ),
    Mutation(
        "a hold of a point that is gone stands",
        "repository/sharing/holding.py",
        "        if publishing.stands(repository, point):\n",
        "        if True:\n",
        (_BESIDE,),
    ),
    Mutation(
        "a hold of what is lost stands",
        "repository/sharing/holding.py",
        "            if missing:\n",
        "            if False:\n",
        ("unit/repository/sharing/test_holds.py::test_an_incomplete_point_cannot_be_held",),
    ),
    Mutation(
        "a hold that is not given stays",
        "repository/sharing/holding.py",
        "            repository.discard(name)\n",
        "            pass\n",
        ("unit/repository/sharing/test_holds.py::test_an_incomplete_point_cannot_be_held",),
    ),
    Mutation(
        "a hold keeps what its point names by now",
        "repository/sharing/survey.py",
        "        return point, hold.since is not None\n",
        "        return repository.point(*point.key), hold.since is not None\n",
        (_BESIDE,),
    ),
    Mutation(
        "an entry of a held point leaves the trash",
        "repository/sharing/collector.py",
        "                or taken.point in needed.held\n",
        "",
        (
            "unit/repository/sharing/test_holds_beside_others.py::test_a_point_whose_removal_was_killed_when_it_met_a_hold_stays_in_the_trash_as_long_as_that",
        ),
    ),
    Mutation(
        "what an entry of a held point names goes",
        "repository/sharing/survey.py",
        " and not found.holds(entry.name)",
        "",
        ("unit/repository/sharing/test_holds.py::test_a_removed_point_that_is_held_can_be_brought_back_as_it_was",),
    ),
    Mutation(
        "retention does not say who holds a point",
        "operations/upkeep/retention_plan.py",
        "*holds.reasons(held.get(point.key, ()))",
        "",
        (
            "unit/repository/sharing/test_holds.py::test_a_held_point_survives_retention_which_says_why_until_it_is_released",
        ),
    ),
    Mutation(
        "space is reclaimed although a hold cannot be read",
        "operations/upkeep/retention_plan.py",
        "for each in facts.holds if each.why_unreadable is not None}",
        "for each in ()}",
        ("unit/repository/sharing/test_holds.py::test_a_damaged_hold_keeps_its_point_and_frees_nothing",),
    ),
    Mutation(
        "a hold that cannot be read is none",
        "repository/sharing/holds.py",
        "            found.append(\n                Hold(taken.parts",
        "            repr(\n                Hold(taken.parts",
        ("unit/repository/sharing/test_holds.py::test_a_damaged_hold_keeps_its_point_and_frees_nothing",),
    ),
    Mutation(
        "a hold whose map is gone frees what others of its maps name",
        "repository/sharing/survey.py",
        "        return point, hold.since is not None\n",
        "        return point, False\n",
        (
            "unit/repository/sharing/test_holds.py::test_a_hold_of_which_a_map_is_gone_stops_collectors_unless_it_was_never_whole",
        ),
    ),
    Mutation(
        "packs of a held point are emptied",
        "operations/upkeep/compaction.py",
        " if ref not in kept]",
        "]",
        ("unit/repository/sharing/test_holds.py::test_packs_that_a_held_point_needs_are_not_emptied",),
    ),
    Mutation(
        "an entry that came late stays beside the next",
        "repository/sharing/trash.py",
        "            _withdraw(repository, entries[:-1])",
        "            _withdraw(repository, ())",
        (
            "unit/repository/sharing/test_late_requests.py::test_an_entry_that_came_late_does_not_outlast_the_manifest_that_it_keeps",
        ),
    ),
    Mutation(
        "a late entry keeps what is about to be deleted",
        "repository/sharing/wholeness.py",
        "    return going.isdisjoint(objects) and",
        "    return",
        (
            "unit/repository/sharing/test_late_requests.py::test_an_entry_after_the_deletion_is_withdrawn_if_a_collector_is_about_to_delete_what_it_names",
        ),
    ),
)

# The storm must miss each check of several sessions on one repository as well.

STORM = tuple(
    each._replace(name=f"in a storm, {each.name}", tests=("unit/repository/sharing/test_clock_storm.py",))
    for each in (*LATE, *SHARING, *HOLDS)
)

# Which disks are read: what lies between an image and the guest, and what is left out.

KINDS = (
    Mutation(
        "an encrypted disk is read from its image",
        "hypervisor/domain_xml/disk_kinds.py",
        "for name in (part.tag, *part.attrib)}",
        "for name in part.attrib}",
        ("unit/hypervisor/test_disk_kinds.py::test_a_disk_that_only_libvirt_can_read_is_refused_while_shut_off",),
    ),
    Mutation(
        "a backing file that is encrypted is read as it is",
        "hypervisor/domain_xml/disk_kinds.py",
        "for part in element.iter() for name",
        'for part in (element, *element, *element.iterfind("source/*")) for name',
        ("unit/hypervisor/test_disk_kinds.py::test_a_disk_that_only_libvirt_can_read_is_refused_while_shut_off",),
    ),
    Mutation(
        "a source without a name is no medium",
        "hypervisor/domain_xml/disk_kinds.py",
        '    name = given.get("name") or',
        '    if not given.get("name"):\n        return None\n    name = given.get("name") or',
        ("unit/hypervisor/test_disk_kinds.py::test_a_source_without_a_name_is_a_medium",),
    ),
    Mutation(
        "a disk is left out without a warning",
        "operations/backup/plan.py",
        "        unasked = plan.reason == disk.why_unreadable and not disk.removable\n",
        "        unasked = False\n",
        ("unit/hypervisor/test_disk_kinds.py::test_a_disk_that_is_left_out_is_in_the_warnings",),
    ),
    Mutation(
        "a bitmap that was not stored is believed",
        "hypervisor/checkpoints.py",
        "        reason = why_unsound(added, name) or why_foreign(added, name)\n",
        "        reason = None\n",
        (
            "integration/test_kinds_of_disks.py::test_a_shut_off_domain_whose_image_store_is_full_is_read_in_full_with_a_warning",
        ),
    ),
    Mutation(
        "a definition's backing chain is not looked at",
        "hypervisor/offline_export.py",
        "    if not disk.backing:\n        return True\n",
        "    return True\n",
        ("integration/test_kinds_of_disks.py::test_a_backing_chain_in_the_definition_is_what_the_guest_sees",),
    ),
    Mutation(
        "a disk over another backing file keeps its history",
        "operations/backup/plan.py",
        'disk.below not in (None, record.image["below"])',
        "disk.below is None",
        ("unit/operations/backup/test_backup_plan.py",),
    ),
    Mutation(
        "an encrypted image is replaced by a plain one under its definition",
        "operations/restore/definitions.py",
        "    if disk.layers:\n",
        "    if not disk.target:\n",
        ("unit/operations/restore/test_readers_of_disks.py",),
    ),
    Mutation(
        "an image is replaced under a saved memory",
        "operations/restore/definitions.py",
        "    if saved:\n",
        "    if False:\n",
        ("unit/operations/restore/test_readers_of_disks.py",),
    ),
    Mutation(
        "a copy shares the state of the original's TPM",
        "operations/restore/machine_xml.py",
        "                backend.remove(source)\n",
        "",
        ("unit/operations/restore/test_machine_xml.py::test_a_copy_does_not_share_the_state_of_a_tpm",),
    ),
    Mutation(
        "a disk in an I/O thread is read with a QEMU that could crash",
        "hypervisor/domain.py",
        ">= (8, 2, 3)",
        ">= (0, 0, 0)",
        ("unit/hypervisor/test_disk_kinds.py::test_a_disk_in_a_thread_is_left_out_if_qemu_could_crash",),
    ),
    Mutation(
        "firmware variables may name a file of the host",
        "operations/restore/saved_machine.py",
        "    return bool(magic == MAGIC and",
        "    return bool(version < 0 and magic == MAGIC and",
        ("unit/operations/point/test_machine_files.py::test_firmware_variables_that_name_another_file_are_recognized",),
    ),
)

# What an export serves, to whom, and how long its restore point is held.

EXPORTS = (
    Mutation(
        "an export begins without a hold",
        "operations/export/export.py",
        "    attempt = holding.hold_if_writable(repository, point, plan.purpose)\n",
        "    attempt = holding.Attempt(None, None)\n",
        (
            "unit/operations/export/test_export_processes.py::test_the_point_is_held_before_the_server_starts_and_until_it_ended",
        ),
    ),
    Mutation(
        "an export that fails leaves its hold",
        "operations/export/export.py",
        "            undo.callback(holds.release, repository, hold.id)\n",
        "            pass\n",
        ("unit/operations/export/test_export_processes.py::test_a_server_that_does_not_start_says_why",),
    ),
    Mutation(
        "another repository at the location is served",
        "operations/export/server.py",
        "        if repository.id != self._settings.plan.repository:\n",
        "        if not repository.id:\n",
        ("unit/operations/export/test_export_processes.py::test_another_repository_at_the_location_is_refused",),
    ),
    Mutation(
        "an export of another repository is ended",
        "operations/export/export.py",
        "            if plan.repository != repository.id:\n",
        "            if not plan.repository:\n",
        ("unit/operations/export/test_export_processes.py::test_an_export_of_another_repository_is_not_ended",),
    ),
    Mutation(
        "the map is not read again",
        "repository/views/disk_view.py",
        "                    self._reread()\n",
        "                    pass\n",
        ("unit/repository/views/test_disk_view.py::test_blocks_that_moved_are_read_where_they_are",),
    ),
    Mutation(
        "a damaged block is served as zeroes",
        "repository/views/disk_view.py",
        "                if isinstance(block, DamagedObject):\n                    raise block\n",
        "                if isinstance(block, DamagedObject):\n                    block = bytes(65536)\n",
        ("unit/repository/views/test_disk_view.py::test_damage_is_an_error_at_its_place_and_nowhere_else",),
    ),
    Mutation(
        "a slot that was given away is read",
        "repository/views/pack_cache.py",
        "                if self._kept.get(key) is slot:\n",
        "                if slot is not None:\n",
        ("unit/repository/views/test_pack_cache.py::test_a_slot_that_is_given_away_during_a_read_is_not_believed",),
    ),
    Mutation(
        "options are granted before TLS",
        "blocks/server/handshake.py",
        "        elif self._tls is not None:\n",
        "        elif self._tls is not None and option == protocol.LIST:\n",
        ("unit/blocks/test_nbd_server.py::test_nothing_is_said_before_tls",),
    ),
    Mutation(
        "an export name is granted before TLS",
        "blocks/server/handshake.py",
        "        if disk is None or self._tls is not None:  # this",
        "        if disk is None:  # this",
        ("unit/blocks/test_nbd_server.py::test_nothing_is_said_before_tls",),
    ),
    Mutation(
        "a client needs no certificate",
        "blocks/server/listener.py",
        "    context.verify_mode = ssl.CERT_REQUIRED\n",
        "    context.verify_mode = ssl.CERT_NONE\n",
        ("unit/blocks/test_nbd_server.py::test_tls_serves_those_with_a_certificate_of_its_authority",),
    ),
    Mutation(
        "a part of a block is written without the rest of it",
        "blocks/server/overlay.py",
        "                    self._bring_up(block)\n",
        "                    pass\n",
        ("unit/blocks/test_nbd_server.py::test_private_writes_are_read_by_all_clients_and_the_disk_stays_as_it_was",),
    ),
    Mutation(
        "a socket in a folder of others is used",
        "operations/export/server.py",
        "        if writable or status.st_uid not in (0, os.geteuid()):\n",
        "        if status.st_uid not in (0, os.geteuid()):\n",
        ("integration/test_export.py::test_a_start_that_fails_leaves_nothing",),
    ),
)

MUTATIONS = (
    *KINDS,
    *CONTENT,
    *PROOFS,
    *ORDER,
    *RULES,
    *GUARDS,
    *TRUST,
    *DEFINITIONS,
    *LATE,
    *HOLDS,
    *FULL,
    *SHARING,
    *STORM,
    *EXPORTS,
)
