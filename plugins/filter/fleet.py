# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters over several hosts: the owner of a domain, the host that processes a repository, and the summary.

The documentation of each filter is in a file of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import typing as t

import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.validation import check_type_dict
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.kvm.cbt.plugins.module_utils._cbt.patterns import matches, missing
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.printable import printable
from ansible_collections.kvm.cbt.plugins.module_utils._options import seconds as read_seconds
from ansible_collections.kvm.cbt.plugins.plugin_utils._tables import domains_table, points_table

Variables = t.Mapping[str, t.Any]
Hosts = t.Sequence[str]

_MOVED_OR_OFF = ("shutoff", "crashed", "nostate")


def _registered(hosts: Hosts, hostvars: t.Mapping[str, Variables], name: str) -> dict[str, t.Mapping[str, t.Any]]:
    """The value of the variable by host, for hosts that have it."""
    known = {host: hostvars[host].get(name) for host in hosts if host in hostvars}
    return {host: value for host, value in known.items() if isinstance(value, t.Mapping)}


def _rank(host: str, domain: t.Mapping[str, str], hosts: Hosts) -> tuple[int, int]:
    order = 0 if domain["state"] == "running" else 2 if domain["state"] in _MOVED_OR_OFF else 1
    return order, hosts.index(host)


def _run(label: str, **options: t.Any) -> dict[str, t.Any]:
    return {"label": label, "options": options}


def cluster_hosts(
    cluster: t.Any, host: str, groups: t.Mapping[str, Hosts], hostvars: t.Mapping[str, Variables], role: str
) -> list[dict[str, str]]:
    """The hosts that may run the domains of a host, with the options of their libvirt; none if it stands alone."""
    members = [member for name in names(cluster or []) for member in groups.get(name, [name])]
    if not members:
        return []

    def connection(name: str) -> dict[str, str]:
        known = hostvars[name] if name in hostvars else {}  # noqa: SIM401  hostvars has no default
        found = {
            option: str(next((known[key] for key in (f"{role}_{option}", f"cbt_{option}") if key in known), ""))
            for option in ("uri", "username", "password", "authfile")
        }
        return {"host": name, **{option: value for option, value in found.items() if value}}

    return [connection(name) for name in dict.fromkeys([*members, host])]


def own_domains(host: str, hosts: Hosts, hostvars: t.Mapping[str, Variables], name: str) -> list[t.Mapping[str, t.Any]]:
    """The domains that belong to a host. If several hosts have a UUID, it belongs to the one with the lowest rank."""
    best: dict[str, tuple[int, int]] = {}
    found = _registered(hosts, hostvars, name)
    for where, listed in found.items():
        for domain in listed.get("domains", []):
            best[domain["uuid"]] = min(_rank(where, domain, hosts), best.get(domain["uuid"], (9, 0)))
    own = [
        domain
        for domain in found.get(host, {}).get("domains", [])
        if _rank(host, domain, hosts) == best[domain["uuid"]]
    ]
    return [
        {**_run(domain["name"], domain=domain["uuid"]), "running": domain["state"] not in _MOVED_OR_OFF}
        for domain in own
    ]


def listed(value: t.Any) -> list[t.Any]:
    """A list, also from a string as surveys and the command line provide it.

    The string is JSON, or has items separated by commas or lines.
    """
    if not isinstance(value, str):
        return list(value) if isinstance(value, t.Iterable) else [value]
    with contextlib.suppress(ValueError):
        loaded = json.loads(value)
        if isinstance(loaded, list) and all(isinstance(each, (str, dict)) for each in loaded):
            return loaded
    return [item.strip() for item in re.split(r"[,\n]", value) if item.strip()]


def names(value: t.Any) -> list[str]:
    """A list of names, see ``listed``."""
    return [str(each) for each in listed(value)]


def patterns(value: t.Any) -> list[str]:
    """A list of patterns of domains. The word ``all`` and an empty string become ``*``."""
    return ["*"] if isinstance(value, str) and value.strip() in ("", "all") else names(value)


def seconds(value: t.Any) -> int:
    """A duration in seconds."""
    try:
        return read_seconds(str(value))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from None


def mapping(value: t.Any) -> dict[str, t.Any]:
    """A dictionary, also from a string as JSON, YAML or ``key=value``. An empty string is an empty dictionary."""
    with contextlib.suppress(TypeError, ValueError, yaml.YAMLError):
        loaded = yaml.safe_load(value) if isinstance(value, str) else value
        return {} if loaded is None else dict(check_type_dict(loaded))
    # The value may contain secrets.
    raise AnsibleFilterError("A dictionary is required. Write it in YAML, as JSON, or as key=value.")


def stored_domains(found: t.Mapping[str, t.Any], wanted: t.Any, excluded: t.Any) -> list[dict[str, t.Any]]:
    """Runs for the domains of a repository that match patterns, or one run for all of them.

    A name that the repository does not contain is passed on, so that the module reports it.
    """
    asked, out = patterns(wanted), names(excluded)
    if asked == ["*"] and not out:
        return [_run("all domains")]
    known = {point["uuid"]: _names(point) for point in found["restore_points"]}
    chosen = sorted(own for own in known.values() if matches(own, asked) and not matches(own, out))
    unknown = [name for name in missing(asked, list(known.values())) if not matches([name], out)]
    return [_run(name, domain=uuid) for name, uuid in chosen] + [_run(name, domain=name) for name in unknown]


def leaving(found: t.Mapping[str, t.Any], asked: t.Any) -> list[dict[str, t.Any]]:
    """Runs for the named domains that have restore points. A UUID means its domain alone."""
    known = {point["uuid"]: _names(point) for point in found["restore_points"]}
    return [_run(name, domain=uuid) for name, uuid in sorted(known.values()) if {name, uuid} & set(names(asked))]


def unknown(asked: t.Any, hosts: Hosts, hostvars: t.Mapping[str, Variables], step: str) -> list[str]:
    """Names and UUIDs that are neither a domain of a host nor one in a repository, as a step registered them.

    None is unknown if a repository could not be listed.
    """
    known = set()
    for found in _registered(hosts, hostvars, f"{step}_found").values():
        known |= {domain[key] for domain in found.get("domains", ()) for key in ("name", "uuid")}
    for stored in _registered(hosts, hostvars, f"{step}_points").values():
        if stored.get("failed") or stored.get("unreachable"):
            return []
        known |= {point[key] for point in stored.get("restore_points", ()) for key in ("domain", "uuid")}
    return [name for name in names(asked) if name not in known]


def collected_once(runs: t.Sequence[t.Mapping[str, t.Any]], collect: t.Any) -> list[dict[str, t.Any]]:
    """Runs of retention for several domains, of which only a last one, for all domains, reclaims space."""
    if len(runs) < 2 or not boolean(collect):
        return list(map(dict, runs))
    removing = [{**run, "options": {**run["options"], "collect": False, "compact_below": None}} for run in runs]
    return [*removing, _run("reclaimed space", keep_last=-1)]


def machines_of(machines: t.Any, host: str, hosts: Hosts, known: t.Container[str]) -> list[dict[str, t.Any]]:
    """The machines to restore on a host of the play.

    Fails if a machine would be restored on several hosts, or on one that is not in the inventory.
    """
    chosen = []
    for machine in listed(machines):
        options = _own_point(machine) if isinstance(machine, t.Mapping) else {"domain": str(machine)}
        label = next((options[key] for key in ("new_name", *_DOMAIN) if options.get(key)), None)
        if label is None:
            raise AnsibleFilterError("A machine without a domain cannot be restored. Set domain to its name or UUID.")
        where = options.pop("host", None) or (hosts[0] if len(hosts) == 1 else None)
        if where not in known:
            place = where or "every host of the play"
            raise AnsibleFilterError(
                f"Cannot restore {label} on {place}. Set its host to a host of the inventory, or limit the play to one."
            )
        if where == host:
            chosen.append(_run(label, **options))
    return chosen


_DOMAIN = ("domain", "name", "guest")  # the option and its aliases
_POINT = ("restore_point", "until")


def _own_point(machine: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The options of a machine. If it has a restore point or a time, those of all machines do not apply to it."""
    own = {key: machine.get(key) or None for key in _POINT}
    others = {key: value for key, value in machine.items() if key not in _POINT}
    return {**others, **own} if any(own.values()) else others


def restore_points(
    found: t.Mapping[str, t.Any], wanted: t.Any = "all", excluded: t.Any = (), each: t.Any = False
) -> list[str]:
    """A table of the restore points of a repository, with a line for each domain or for each point."""
    asked, out = patterns(wanted), names(excluded)
    points = [point for point in found["restore_points"] if matches(_names(point), asked)]
    points = [point for point in points if not matches(_names(point), out)]
    table = points_table(points) if boolean(each) else domains_table(points)
    return table + [printable(f"DAMAGED: {name}: {cause}") for name, cause in sorted(found["damaged"].items())]


def _names(point: t.Mapping[str, t.Any]) -> tuple[str, str]:
    return point["domain"], point["uuid"]


def first_of_repository(hosts: Hosts, hostvars: t.Mapping[str, Variables], name: str) -> list[str]:
    """The first host of each repository. Repositories are identified by id."""
    first: dict[str, str] = {}
    for host, found in _registered(hosts, hostvars, name).items():
        if "repository" in found:
            first.setdefault(found["repository"]["id"], host)
    return list(first.values())


class _Step:
    """The results of one step of a play on all hosts."""

    def __init__(self, name: str, hosts: Hosts, hostvars: t.Mapping[str, Variables]) -> None:
        self.name, self.hosts = name, hosts
        self.found = _registered(hosts, hostvars, f"{name}_found")
        self.outcome = _registered(hosts, hostvars, f"{name}_outcome")
        self.store = _registered(hosts, hostvars, f"{name}_store")
        self.points = _registered(hosts, hostvars, f"{name}_points")

    def missing(self) -> list[str]:
        """Requested names that no queried host has."""
        asked = [found for found in self.found.values() if "missing" in found]
        names = sorted({name for found in asked for name in found["missing"]})
        here = {domain[key] for found in asked for domain in found["domains"] for key in ("name", "uuid")}
        return [name for name in names if name not in here]

    def lines(self, host: str) -> tuple[list[str], bool]:
        """Lines about the step on a host, and whether it succeeded."""
        found, outcome = self.found.get(host), self.outcome.get(host)
        if outcome is not None and "outcomes" in outcome:
            lost = [f"LOST: {outcome['msg']}"] if outcome.get("unreachable") else []
            each = [
                f"{'FAILED: ' if one['failed'] else ''}{one['label']}: {one['text']}" for one in outcome["outcomes"]
            ]
            return lost + each, not lost and not any(one["failed"] for one in outcome["outcomes"])
        for tried in (outcome, self.points.get(host), self.store.get(host), found):
            if tried is not None and tried.get("unreachable"):
                return [f"UNREACHABLE: {tried.get('msg')}"], False
            if tried is not None and tried.get("failed"):
                return [f"FAILED: {tried.get('msg')}"], False
        if found is None and outcome is None:
            return ["FAILED: not reached"], False
        if found is not None and "msg" in found:
            return [f"not available in check mode: {found['msg']}"], True
        return [], True


def summary(hosts: Hosts, hostvars: t.Mapping[str, Variables], steps: str | t.Sequence[str]) -> dict[str, t.Any]:
    """Lines about all steps on all hosts, the hosts with failures, and the domains that no host has."""
    lines: list[str] = []
    bad: list[str] = []
    missing: set[str] = set()
    ran: list[str] = []
    for step in (_Step(name, hosts, hostvars) for name in names(steps)):
        if not step.found and not step.outcome:
            continue
        ran.append(step.name)
        for host in hosts:
            text, succeeded = step.lines(host)
            lines += [f"{step.name} on {host}: {line}" for line in text]
            bad += [] if succeeded or host in bad else [host]
        lines += [f"{step.name}: MISSING: {name} was not found on any host in this play" for name in step.missing()]
        missing.update(step.missing())
    return {"lines": [printable(line) for line in lines], "failed": bad, "missing": sorted(missing), "ran": ran}


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by the names that templates use."""
        return {
            "cluster_hosts": cluster_hosts,
            "collected_once": collected_once,
            "first_of_repository": first_of_repository,
            "leaving": leaving,
            "listed": listed,
            "machines_of": machines_of,
            "mapping": mapping,
            "names": names,
            "own_domains": own_domains,
            "patterns": patterns,
            "printable": printable,
            "seconds": seconds,
            "stored_domains": stored_domains,
            "restore_points": restore_points,
            "summary": summary,
            "unknown": unknown,
        }
