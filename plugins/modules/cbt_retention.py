#!/usr/bin/python

# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cbt_retention
short_description: Remove restore points by rules and reclaim their space
version_added: 0.1.0
description:
  - Keeps the restore points of each domain that match a rule, removes the others, and reclaims the space of data that
    is no longer referenced.
  - The rules work as in restic. Restore points are processed from the newest to the oldest. Every rule has its own
    counter, and a restore point is kept if any rule selects it. The oldest restore point is also kept by every rule
    whose counter is not used up.
  - Pinned restore points and restore points dated in the future are kept and do not count for any rule.
  - If the date of a restore point does not fit the order of the others, because the clock of a host was wrong, it
    counts as made at the same time as the restore point before it.
  - A removed restore point can be brought back with O(undelete) until O(grace) ends. A run after that condemns the
    objects that only this restore point uses, and a run at least O(grace) later deletes them.
  - A restore point is kept while there is a hold on it, for example because a machine is served from it.
    M(kvm.cbt.cbt_repository_info) lists the holds.
  - This module can free space even if the file system of a repository in a directory is full. To do so, it releases a
    reserve of 1 MiB, which it creates again afterwards. Set O(grace) to V(0) to free the space immediately. The removed
    restore points cannot be brought back then. O(compact_below) has no effect until there is space for new packs.
  - Backups, restores and other runs of this module may run at the same time, on any host.
  - Any restore point can be removed, because each is a full image. If the next incremental backup would have been based
    on a removed restore point, it reads the disks in full.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._attributes.heartbeats
  - kvm.cbt._libvirt.any_domain
  - kvm.cbt._repository
  - kvm.cbt._log
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Lists the restore points before and after the run.
  idempotent:
    support: partial
    details:
      - A second run removes no more restore points, but reports a change when it deletes objects that an earlier run
        condemned.
options:
  keep_last:
    description:
      - Keep this many of the newest restore points. V(-1) keeps all. The same applies to the other counts.
    type: int
    default: 0
  keep_hourly:
    description:
      - For this many of the most recent hours that have restore points, keep the newest one of each.
    type: int
    default: 0
  keep_daily:
    description:
      - For this many of the most recent days that have restore points, keep the newest one of each.
    type: int
    default: 0
  keep_weekly:
    description:
      - For this many of the most recent weeks (ISO 8601) that have restore points, keep the newest one of each.
    type: int
    default: 0
  keep_monthly:
    description:
      - For this many of the most recent months that have restore points, keep the newest one of each.
    type: int
    default: 0
  keep_yearly:
    description:
      - For this many of the most recent years that have restore points, keep the newest one of each.
    type: int
    default: 0
  keep_within:
    description:
      - Keep all restore points within this period before the newest one, such as V(30d) or V(1y6m).
      - The units are years (y), months (m), days (d) and hours (h), in this order. As in restic, V(6m) is six months.
    type: str
  keep_tags:
    description:
      - Keep all restore points with at least one of these tags, given as C(name) or C(name=value).
    type: list
    elements: str
    default: []
  timezone:
    description:
      - Time zone in which hours, days, weeks, months and years start, such as V(Europe/Berlin).
    type: str
    default: UTC
  allow_empty:
    description:
      - Whether to allow the rules to remove all restore points of a domain.
      - By default, a run that would remove restore points of a domain is refused if it has no rules, or if its rules
        select none of them, even if a restore point dated in the future remains.
    type: bool
    default: false
  undelete:
    description:
      - Ids of removed restore points to bring back. If O(domain) is set, they must belong to this domain.
        Restore points that exist are left unchanged.
      - No rule of the same run removes them. Later runs remove them unless a rule selects them.
      - If no rules are given, nothing is removed.
    type: list
    elements: str
    default: []
  grace:
    description:
      - Time during which a removed restore point can be brought back, and also the minimum time between condemning an
        object and deleting it, such as V(90) (seconds), V(15m), V(24h) or V(7d). It is measured by the clock of the
        storage.
      - Use the same value for all runs on a repository. Each run applies its own value, so the shortest one decides how
        long a removed restore point can be brought back.
      - Hosts that mount a repository over NFS see each other's files with a delay of up to a minute. Use at least
        V(300) there unless no other run is active, because the protection of running backups depends on what other
        hosts can see.
      - On CephFS, on GlusterFS with C(ctime), and on NFS 4.2 with delegated timestamps, the hosts set the timestamps of
        files. Synchronize the clocks of all hosts with NTP there. The default tolerates clocks that differ by up to
        three hours.
    type: str
    default: 24h
  collect:
    description:
      - Whether to reclaim space. With V(false), the run only removes restore points, which is fast.
    type: bool
    default: true
  compact_below:
    description:
      - Compact packs in which less than this percentage of the blocks is in use. The blocks in use are copied to new
        packs, and all restore points are updated to refer to them there. V(50) is a reasonable value.
        The space of the old packs is then reclaimed like that of any other pack.
      - A block can be stored in several packs, for example by backups that ran at the same time. It counts as in use
        in only one of them and is not copied. To find such blocks, the run reads the directories of all packs, less
        than a thousandth of the stored data.
      - Blocks of a removed restore point that can still be brought back count as in use but are not copied, because the
        restore point keeps its packs.
      - Packs of a held restore point are not compacted, because none of their space could be reclaimed.
      - By default, nothing is compacted. Packs are never compacted with O(collect=false), or while a manifest or a hold
        is damaged.
    type: int
  confirm_shrink:
    description:
      - Whether to reclaim space even if at most half as many restore points are found as in the previous run. The count
        includes removed ones that can still be brought back.
      - By default, space is not reclaimed in this case, because the storage may be incompletely mounted or replicated.
    type: bool
    default: false
requirements:
  - python >= 3.9
  - time zone data (tzdata), with O(timezone) other than V(UTC)
seealso:
  - module: kvm.cbt.cbt_backup
  - module: kvm.cbt.cbt_backup_info
  - module: kvm.cbt.cbt_restore_point
  - module: kvm.cbt.cbt_repository_info
"""

EXAMPLES = r"""
- name: Keep 7 daily, 5 weekly and 12 monthly restore points
  kvm.cbt.cbt_retention:
    repository: /backup/kvm
    keep_daily: 7
    keep_weekly: 5
    keep_monthly: 12
    timezone: Europe/Berlin

- name: Bring back a restore point that was removed by mistake
  kvm.cbt.cbt_retention:
    repository: /backup/kvm
    undelete: [20261122T113005Z-1a2b3c4d]

- name: Reclaim space without removing any restore point, including that of packs that are mostly unused
  kvm.cbt.cbt_retention:
    repository: /backup/kvm
    keep_last: -1
    compact_below: 50
"""

RETURN = r"""
kept:
  description: Restore points that are kept, oldest first within each domain.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      type: str
      sample: 20261122T113005Z-1a2b3c4d
    domain:
      description: Name of the domain at the time of the backup.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    created:
      description: UTC time of the backup.
      type: str
      sample: "2026-11-22T11:30:05.123456+00:00"
    rules:
      description:
        - Rules that keep it, out of V(last), V(hourly), V(daily), V(weekly), V(monthly), V(yearly), V(within), V(tags),
          V(pinned), V(future), V(undelete) and V(locked). V(locked) means that the object store does not permit its
          removal yet.
        - A restore point that is in use, for example by an export, is kept regardless of the rules. Its use is listed
          here as well, such as V(held by export on kvm1 since 2026-11-22T11:30:05+00:00).
      type: list
      elements: str
      sample: [daily, weekly]
removed:
  description: Restore points that were removed, or would be, in the form of RV(kept) with empty rules.
  returned: always
  type: list
  elements: dict
undeleted:
  description: Ids of the restore points that were brought back.
  returned: always
  type: list
  elements: str
  sample: []
condemned:
  description: Number of objects condemned by this run. In check mode, without those that O(compact_below) would add.
  returned: with O(collect)
  type: int
  sample: 3
reclaimed_bytes:
  description:
    - Total size of the deleted objects in bytes. With O(grace) of V(0), in check mode without those that
      O(compact_below) would add.
  returned: with O(collect)
  type: int
  sample: 201326592
compacted_packs:
  description: Number of packs that were compacted.
  returned: with O(compact_below)
  type: int
  sample: 2
rewritten_bytes:
  description: Number of bytes copied into new packs. An estimate in check mode.
  returned: with O(compact_below)
  type: int
  sample: 40215552
trash:
  description: Removed restore points that can still be brought back, in the order of removal.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      type: str
      sample: 20261120T113005Z-99aabbcc
    domain:
      description: Name of the domain at the time of the backup.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    removed:
      description: UTC time of the removal, by the storage's clock.
      type: str
      sample: "2026-11-22T23:00:01+00:00"
    recoverable_until:
      description: UTC time until which it can certainly be brought back.
      type: str
      sample: "2026-11-23T23:00:01+00:00"
damaged:
  description:
    - Manifests and holds that cannot be read, each with the cause. They are never removed. While there is one, no space
      is reclaimed.
  returned: always
  type: dict
  sample: {}
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _options, _repository, _runtime
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.upkeep.retention import (
    RestorePoint,
    RetentionRequest,
    RetentionResult,
    retention,
)
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.upkeep.retention_rules import (
    Rules,
    parse_duration,
    parse_zone,
)
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.printable import utc_time

_COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def _rules(module: AnsibleModule) -> Rules | None:
    params = module.params
    counts = {name: params[f"keep_{name}"] for name in _COUNTS}
    within = parse_duration(params["keep_within"]) if params["keep_within"] is not None else None
    rules = Rules(**counts, within=within, tags=tuple(params["keep_tags"]))
    if params["undelete"] and not rules.given:
        return None
    return dataclasses.replace(rules, zone=parse_zone(params["timezone"]))


def _request(module: AnsibleModule) -> RetentionRequest:
    params = module.params
    return RetentionRequest(
        rules=_rules(module),
        domain=params["domain"],
        undelete=tuple(params["undelete"]),
        grace=params["grace"],
        allow_empty=params["allow_empty"],
        collect=params["collect"],
        confirm_shrink=params["confirm_shrink"],
        compact_below=params["compact_below"],
    )


def _point(point: RestorePoint) -> dict[str, object]:
    return {key: getattr(point, key) for key in ("id", "domain", "uuid", "created")}


def _outcome(result: RetentionResult, grace: int) -> dict[str, object]:
    outcome: dict[str, object] = {
        "changed": result.changed,
        "kept": [{**_point(verdict.point), "rules": list(verdict.rules)} for verdict in result.kept],
        "removed": [{**_point(point), "rules": []} for point in result.removed],
        "undeleted": [point.id for point in result.undeleted],
        "trash": [
            {
                **{key: getattr(each.point, key) for key in ("id", "domain", "uuid")},
                "removed": utc_time(each.at),
                "recoverable_until": utc_time(each.at + grace),
            }
            for each in result.trash
        ],
        "damaged": dict(result.damaged),
    }
    if result.compacted is not None:
        outcome.update(compacted_packs=result.compacted.packs, rewritten_bytes=result.compacted.copied_bytes)
    if result.collected is not None:
        outcome.update(condemned=result.collected.condemned, reclaimed_bytes=result.collected.reclaimed_bytes)
    return outcome


def _diff(result: RetentionResult) -> dict[str, str]:
    def line(point: RestorePoint) -> str:
        return f"{point.domain} {point.id}\n"

    back = {point.key for point in result.undeleted}
    after = sorted({line(verdict.point) for verdict in result.kept} | {line(point) for point in result.undeleted})
    before = sorted({line(verdict.point) for verdict in result.verdicts if verdict.point.key not in back})
    return {"before": "".join(before), "after": "".join(after)}


def main() -> None:
    """Run the module."""
    module = _runtime.Module(
        argument_spec={
            **_options.REPOSITORY,
            **_options.ANY_DOMAIN,
            **_options.LOG,
            **{f"keep_{name}": {"type": "int", "default": 0} for name in _COUNTS},
            "keep_within": {"type": "str"},
            "keep_tags": {"type": "list", "elements": "str", "default": []},
            "timezone": {"type": "str", "default": "UTC"},
            "allow_empty": {"type": "bool", "default": False},
            "undelete": {"type": "list", "elements": "str", "default": []},
            "grace": {"type": "str", "default": "24h"},
            "collect": {"type": "bool", "default": True},
            "confirm_shrink": {"type": "bool", "default": False},
            "compact_below": {"type": "int"},
        },
        mutually_exclusive=[_options.ONE_PASSPHRASE],
        supports_check_mode=True,
    )
    control = _runtime.interruptible(module)
    control.reached("Restore points that were removed stay removed. Run it again to reclaim the space.")
    with _runtime.reported(module):
        request = _request(module)
        result = retention(_repository.existing_repository(module), request, module.check_mode, control)
    for name, cause in sorted(result.damaged.items()):
        module.warn(f"No space is reclaimed while {name} cannot be read: {cause}")
    if result.full:
        module.warn(
            f"{module.params['repository']} was full, and space was reclaimed with the reserve."
            " Keep fewer restore points, or provide more space."
        )
    for warning in result.collected.foreign if result.collected is not None else ():
        module.warn(warning)
    module.exit_json(**_outcome(result, module.params["grace"]), diff=_diff(result))


if __name__ == "__main__":
    main()
