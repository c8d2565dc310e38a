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
  - Keeps the restore points of each domain that a rule takes, removes the others, and reclaims the space of what nothing needs any more.
  - The rules follow restic. Points are taken newest first, every rule has a counter of its own, a point is kept if any rule takes it,
    and the oldest point is kept by every rule that has counts left. Pinned points are kept and count for no rule, and so are points
    dated in the future.
  - A point that was taken while its host's clock was set back or ran ahead, as the times of the others tell, counts as made when the
    one before it was.
  - A removed point stays recoverable with O(undelete) until O(grace) ends. What it alone needs is announced as condemned after that,
    and deleted by a run at least O(grace) later.
  - A restore point that is held, because a machine is served from it, is kept for as long as it is. M(kvm.cbt.cbt_repository_info) lists the holds.
  - If a repository in a directory is full to the last byte, this module frees space all the same. For that it gives up a reserve of 1 MiB, which it makes anew.
    Set O(grace) to V(0) to have the space at once; the removed points cannot be brought back then. O(compact_below) has no effect
    until there is space for new packs.
  - Backups, restores and other runs of this module may go on at the same time, on any host.
  - Any point may be removed, for each is a full image. Where the point goes that the next incremental backup would have built on,
    that backup reads in full.
author:
  - The kvm.cbt authors (@kvm-cbt)
extends_documentation_fragment:
  - kvm.cbt._attributes
  - kvm.cbt._attributes.actiongroup
  - kvm.cbt._repository
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Lists the restore points before and after.
  idempotent:
    support: partial
    details:
      - A second run removes nothing more, but reports a change once it deletes what an earlier one condemned.
options:
  domain:
    description:
      - Name or UUID of the domain whose points the rules are for. All domains, each by itself, if left out.
    type: str
    aliases: [name, guest]
  keep_last:
    description:
      - Keep this many of the newest points; V(-1) for all, as with the other counts.
    type: int
    default: 0
  keep_hourly:
    description:
      - Keep the newest point of each of this many hours that have one.
    type: int
    default: 0
  keep_daily:
    description:
      - Keep the newest point of each of this many days that have one.
    type: int
    default: 0
  keep_weekly:
    description:
      - Keep the newest point of each of this many weeks (ISO 8601) that have one.
    type: int
    default: 0
  keep_monthly:
    description:
      - Keep the newest point of each of this many months that have one.
    type: int
    default: 0
  keep_yearly:
    description:
      - Keep the newest point of each of this many years that have one.
    type: int
    default: 0
  keep_within:
    description:
      - Keep all points not older than this, counted back from the newest one, such as V(30d) or V(1y6m) - years (y), months (m),
        days (d) and hours (h), in this order.
    type: str
  keep_tags:
    description:
      - Keep all points with one of these tags, given as C(name) or C(name=value).
    type: list
    elements: str
    default: []
  timezone:
    description:
      - Time zone in which hours, days, weeks, months and years begin, such as V(Europe/Berlin).
    type: str
    default: UTC
  allow_empty:
    description:
      - Whether the rules may remove all points of a domain. Without it, a run that would remove points but has no rule at all, or
        whose rules take none, is refused, even where a point dated in the future stays.
    type: bool
    default: false
  undelete:
    description:
      - Ids of removed points to bring back, those of O(domain) only if that is given. A point that exists is left as it is.
      - In the same run, no rule removes them; later ones do unless a rule takes them. Without any rule, nothing is removed.
    type: list
    elements: str
    default: []
  grace:
    description:
      - Seconds for which a removed point can be brought back, and again seconds between condemning and deleting, by the clock of the storage.
      - Of runs with different values on one repository, each goes by its own. The shortest ends what others left recoverable.
      - Hosts that mount a repository over NFS see each other's files with a delay of up to a minute. Give at least V(300) there, as safety
        beside running backups rests on what others see, unless nothing else is at work.
      - On CephFS, on GlusterFS with C(ctime), and on NFS 4.2 with delegated timestamps, the hosts set the times of files. Keep the clocks of all hosts
        with NTP there. The default bears clocks that differ by up to three hours.
    type: int
    default: 86400
  collect:
    description:
      - Whether space is reclaimed. V(false) only removes points, which is quick.
    type: bool
    default: true
  compact_below:
    description:
      - Packs of which less than this percentage of the blocks is needed are emptied - what is needed in them is copied into new packs, and
        all restore points name it there. V(50) is a fair choice. The space of an emptied pack is reclaimed as that of any other.
      - A block that lies in several packs, as those of backups that ran at the same time may, counts for one of them and is not copied.
        To find those, the directories of all packs are read, which are less than a thousandth of what is stored.
      - What a removed point needs that can still be brought back counts as needed, but is not copied, since that point keeps its packs.
      - Packs of a restore point that is held are not emptied, since nothing of them can go.
      - Nothing is copied if left out, if O(collect) is V(false), or while a manifest or a hold is damaged.
    type: int
  confirm_shrink:
    description:
      - Whether space is reclaimed even if no more than half as many points are listed as the last time, removed ones that are still
        recoverable included. Such a listing may be that of storage which is mounted or replicated in part.
    type: bool
    default: false
requirements:
  - python >= 3.9
  - time zone data (tzdata), with O(timezone) other than V(UTC)
seealso:
  - module: kvm.cbt.cbt_backup
  - module: kvm.cbt.cbt_backup_info
  - module: kvm.cbt.cbt_repository_info
"""

EXAMPLES = r"""
- name: Keep a week of days, a month of weeks and a year of months
  kvm.cbt.cbt_retention:
    repository: /backup/kvm
    keep_daily: 7
    keep_weekly: 5
    keep_monthly: 12
    timezone: Europe/Berlin

- name: Bring back a point that was removed by mistake
  kvm.cbt.cbt_retention:
    repository: /backup/kvm
    undelete: [20261122T113005Z-1a2b3c4d]

- name: Reclaim space without removing any point, that of packs mostly dead as well
  kvm.cbt.cbt_retention:
    repository: /backup/kvm
    keep_last: -1
    compact_below: 50
"""

RETURN = r"""
kept:
  description: Restore points that stay, oldest first within each domain.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its id.
      type: str
      sample: 20261122T113005Z-1a2b3c4d
    domain:
      description: Name the domain had.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    created:
      description: UTC time at which it was taken.
      type: str
      sample: "2026-11-22T11:30:05.123456+00:00"
    rules:
      description: The rules that keep it - V(last), V(hourly), V(daily), V(weekly), V(monthly), V(yearly), V(within), V(tags),
        V(pinned), V(future), V(undelete), or V(locked) where the object store lets nobody remove it yet. A point that is in use, as by an export, is
        kept whatever the rules say. What uses it is named here as well, such as V(held by export on kvm1 since 2026-11-22T11:30:05+00:00).
      type: list
      elements: str
      sample: [daily, weekly]
removed:
  description: Restore points that were, or would be, removed, as RV(kept), with no rules.
  returned: always
  type: list
  elements: dict
undeleted:
  description: Ids of the restore points brought back.
  returned: always
  type: list
  elements: str
  sample: []
condemned:
  description: Number of objects newly announced for deletion. In check mode without those that O(compact_below) would bring about.
  returned: with O(collect)
  type: int
  sample: 3
reclaimed_bytes:
  description: Bytes of the objects deleted. With O(grace) of V(0), in check mode without those that O(compact_below) would bring about.
  returned: with O(collect)
  type: int
  sample: 201326592
compacted_packs:
  description: Number of packs that were emptied.
  returned: with O(compact_below)
  type: int
  sample: 2
rewritten_bytes:
  description: Bytes copied into new packs; an estimate in check mode.
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
      description: Name the domain had.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: 2f4ba9c1-5ca3-4b0c-a9b9-7f5a1a0b3f4e
    removed:
      description: UTC time at which it was removed, by the store's clock.
      type: str
      sample: "2026-11-22T23:00:01+00:00"
    recoverable_until:
      description: UTC time until which it can surely be brought back.
      type: str
      sample: "2026-11-23T23:00:01+00:00"
damaged:
  description:
    - Manifests and holds that cannot be read, each with the cause. They are never removed, and while there is one no space is reclaimed.
  returned: always
  type: dict
  sample: {}
"""

import datetime
import zoneinfo

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.kvm.cbt.plugins.module_utils import _module
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.upkeep.retention import (
    RetentionRequest,
    RetentionResult,
    retention,
)
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.upkeep.retention_rules import (
    Rules,
    parse_duration,
)
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.repository.format.manifests import RestorePoint

_COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def _rules(module: AnsibleModule) -> Rules | None:
    params = module.params
    counts = {name: params[f"keep_{name}"] for name in _COUNTS}
    for name, count in counts.items():
        if count < -1:
            module.fail_json(msg=f"keep_{name} is {count}; it must be a count, 0 for no such rule or -1 for all.")
    within = parse_duration(params["keep_within"]) if params["keep_within"] is not None else None
    if params["undelete"] and not any(counts.values()) and within is None and not params["keep_tags"]:
        return None
    return Rules(**counts, within=within, tags=tuple(params["keep_tags"]), zone=_zone(module))


def _zone(module: AnsibleModule) -> datetime.tzinfo:
    name = module.params["timezone"]
    if name == "UTC":
        return datetime.timezone.utc
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        module.fail_json(msg=f"The time zone {name} is not known here. Write it like Europe/Berlin, or install tzdata.")
        raise


def _request(module: AnsibleModule) -> RetentionRequest:
    params = module.params
    if params["grace"] < 0:
        module.fail_json(msg=f"grace is {params['grace']}; it must be a number of seconds, or 0 for none.")
    if params["compact_below"] is not None and not 1 <= params["compact_below"] <= 100:
        module.fail_json(msg=f"compact_below is {params['compact_below']}; it must be a percentage from 1 to 100.")
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


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).isoformat()


def _outcome(result: RetentionResult, grace: int) -> dict[str, object]:
    outcome: dict[str, object] = {
        "changed": result.changed,
        "kept": [{**_point(verdict.point), "rules": list(verdict.rules)} for verdict in result.kept],
        "removed": [{**_point(point), "rules": []} for point in result.removed],
        "undeleted": [point.id for point in result.undeleted],
        "trash": [
            {
                **{key: getattr(each.point, key) for key in ("id", "domain", "uuid")},
                "removed": _time(each.at),
                "recoverable_until": _time(each.at + grace),
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
    module = _module.Module(
        argument_spec={
            **_module.REPOSITORY,
            **_module.ANY_DOMAIN,
            **{f"keep_{name}": {"type": "int", "default": 0} for name in _COUNTS},
            "keep_within": {"type": "str"},
            "keep_tags": {"type": "list", "elements": "str", "default": []},
            "timezone": {"type": "str", "default": "UTC"},
            "allow_empty": {"type": "bool", "default": False},
            "undelete": {"type": "list", "elements": "str", "default": []},
            "grace": {"type": "int", "default": 86400},
            "collect": {"type": "bool", "default": True},
            "confirm_shrink": {"type": "bool", "default": False},
            "compact_below": {"type": "int"},
        },
        supports_check_mode=True,
    )
    with _module.reported(module):
        request = _request(module)
        result = retention(_module.existing_repository(module), request, module.check_mode)
    for name, cause in sorted(result.damaged.items()):
        module.warn(f"No space is reclaimed while {name} cannot be read: {cause}")
    if result.full:
        module.warn(
            f"{module.params['repository']} was full, and space was reclaimed with the reserve. Keep fewer restore points, or give it more space."
        )
    for warning in result.collected.foreign if result.collected is not None else ():
        module.warn(warning)
    module.exit_json(**_outcome(result, module.params["grace"]), diff=_diff(result))


if __name__ == "__main__":
    main()
