# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What concerns several hosts: whose a domain is, who works on a repository, what the summary tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fleet
import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as some

HOSTS = ["kvm1", "kvm2", "kvm3"]
STATES = some.sampled_from(["running", "paused", "shutoff", "crashed", "pmsuspended"])


def _hostvars(**states: dict[str, str]) -> dict[str, Any]:
    """What hosts found: their domains by UUID, with the state of each."""
    return {
        host: {"f": {"domains": [{"name": f"n{uuid}", "uuid": uuid, "state": state} for uuid, state in found.items()]}}
        for host, found in states.items()
    }


def _own(hostvars: dict[str, Any]) -> dict[str, list[str]]:
    return {host: [run["options"]["domain"] for run in fleet.own_domains(host, HOSTS, hostvars, "f")] for host in HOSTS}


def test_a_domain_on_two_nodes_belongs_to_the_one_where_it_runs() -> None:
    found = _hostvars(
        kvm1={"a": "shutoff", "b": "paused", "c": "running"},
        kvm2={"a": "running", "b": "running", "c": "paused"},
        kvm3={"a": "paused"},
    )
    assert _own(found) == {"kvm1": ["c"], "kvm2": ["a", "b"], "kvm3": []}


def test_a_domain_that_is_shut_off_everywhere_belongs_to_the_first_node_that_answers() -> None:
    found = {
        **_hostvars(kvm2={"a": "shutoff"}, kvm3={"a": "shutoff"}),
        "kvm1": {"f": {"unreachable": True, "msg": "gone"}},
    }
    assert _own(found) == {"kvm1": [], "kvm2": ["a"], "kvm3": []}


@given(some.dictionaries(some.sampled_from(HOSTS), some.dictionaries(some.sampled_from("abcd"), STATES)))
def test_each_domain_belongs_to_just_one_host_that_has_it(states: dict[str, dict[str, str]]) -> None:
    own = _own(_hostvars(**states))
    assert sorted(uuid for uuids in own.values() for uuid in uuids) == sorted(
        {uuid for found in states.values() for uuid in found}
    )
    for host, uuids in own.items():
        assert set(uuids) <= set(states.get(host, {}))


GROUPS = {"all": ["kvm1", "kvm2", "kvm3", "alone"], "nodes": ["kvm1", "kvm2"]}


@pytest.mark.parametrize(
    ("cluster", "names"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("nodes", ["kvm1", "kvm2"]),
        ("kvm3, kvm1", ["kvm3", "kvm1", "kvm2"]),  # a survey gives a list as a string
        ('["kvm3", "kvm1"]', ["kvm3", "kvm1", "kvm2"]),
        (["kvm3", "nodes", "kvm3"], ["kvm3", "kvm1", "kvm2"]),
        (["kvm1", "gone"], ["kvm1", "gone", "kvm2"]),  # a host that is not in the inventory is not forgotten
        ("nods", ["nods", "kvm2"]),
    ],
)
def test_a_cluster_is_a_group_or_a_list_and_contains_the_host(cluster: Any, names: list[str]) -> None:
    hosts = fleet.cluster_hosts(cluster, "kvm2", GROUPS, {"kvm1": {}}, "backup")
    assert [each["host"] for each in hosts] == names


def test_each_host_of_a_cluster_is_queried_at_its_own_uri_with_its_own_credentials() -> None:
    hostvars = {
        "kvm1": {"cbt_uri": "a", "backup_uri": "b", "cbt_username": "u", "backup_password": "p"},
        "kvm2": {"cbt_uri": "c", "cbt_authfile": "/auth", "cbt_username": ""},
        "kvm3": {},
    }
    assert fleet.cluster_hosts([*HOSTS, "gone"], "kvm1", GROUPS, hostvars, "backup") == [
        {"host": "kvm1", "uri": "b", "username": "u", "password": "p"},
        {"host": "kvm2", "uri": "c", "authfile": "/auth"},
        {"host": "kvm3"},
        {"host": "gone"},
    ]


def test_the_first_host_that_reaches_a_repository_maintains_it_under_any_local_path() -> None:
    found = {
        "kvm1": {"f": {"failed": True}},
        "kvm2": {"f": {"repository": {"id": "1"}}},
        "kvm3": {"f": {"repository": {"id": "1"}}},
        "kvm4": {},
    }
    assert fleet.first_of_repository([*HOSTS, "kvm4"], found, "f") == ["kvm2"]
    found["kvm3"]["f"]["repository"] = {"id": "2"}
    assert fleet.first_of_repository(HOSTS, found, "f") == ["kvm2", "kvm3"]


STORED = {"restore_points": [{"domain": name, "uuid": f"u-{name}"} for name in ("web2", "db1", "web1", "[prod] web1")]}


@pytest.mark.parametrize(
    ("wanted", "excluded", "chosen"),
    [
        ("all", [], [None]),
        ("all", ["web?"], ["u-[prod] web1", "u-db1"]),
        ("all", "[prod] web1", ["u-db1", "u-web1", "u-web2"]),
        (["web*"], [], ["u-web1", "u-web2"]),
        ("web1, u-db1", "", ["u-db1", "u-web1"]),
        (["db1", "lost"], [], ["u-db1", "lost"]),
        (["db1", "lost"], ["l*"], ["u-db1"]),
        ("", "", [None]),
        ("db1\nweb1", "", ["u-db1", "u-web1"]),
        ('["db1", "web1"]', '["web1"]', ["u-db1"]),
        (["u-db1"], ["db1"], []),
        (["[prod] web?"], [], ["u-[prod] web1"]),
        ("[prod] web1", "", ["u-[prod] web1"]),
        (["[lost]"], [], ["[lost]"]),
        (["all"], [], ["all"]),
    ],
)
def test_stored_domains_are_chosen_by_patterns_and_a_name_that_is_not_stored_is_left_to_be_complained_of(
    wanted: Any, excluded: Any, chosen: Any
) -> None:
    assert [run["options"].get("domain") for run in fleet.stored_domains(STORED, wanted, excluded)] == chosen


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (["a", "b"], ["a", "b"]),
        (("a",), ["a"]),
        ("a", ["a"]),
        (" a , b,", ["a", "b"]),
        ("a\nb\n", ["a", "b"]),
        ('["a, b", "c"]', ["a, b", "c"]),
        ("[prod] web1", ["[prod] web1"]),
        ("[1]", ["[1]"]),
        (101, ["101"]),
        ([101, 102], ["101", "102"]),
        ("", []),
        ("[]", []),
    ],
)
def test_names_may_be_given_as_a_list_or_as_a_string(value: Any, read: list[str]) -> None:
    assert fleet.names(value) == read


@pytest.mark.parametrize("value", ["all", " all ", "", "*", ["*"]])
def test_all_domains_may_be_given_in_several_ways(value: Any) -> None:
    assert fleet.patterns(value) == ["*"]


def test_a_list_with_the_word_all_names_a_domain() -> None:
    assert fleet.patterns(["all"]) == ["all"]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"a": 1}, {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        ("a: 1\nb: [x]", {"a": 1, "b": ["x"]}),
        ("a=1 b=x", {"a": "1", "b": "x"}),
        ("", {}),
        ("{}", {}),
    ],
)
def test_a_dictionary_may_be_given_as_a_string(value: Any, read: dict[str, Any]) -> None:
    assert fleet.mapping(value) == read


@pytest.mark.parametrize("value", ["secret", "[1, 2]", ["secret"], "a: b: secret", 7, "{secret"])
def test_a_value_that_is_not_a_dictionary_is_refused_and_not_shown(value: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="A dictionary is required") as caught:
        fleet.mapping(value)
    assert "secret" not in str(caught.value)


def _each(*domains: str | None) -> list[dict[str, Any]]:
    return [{"label": domain, "options": {"domain": domain}} for domain in domains]


def test_several_runs_of_retention_reclaim_space_once_at_the_end() -> None:
    *removing, last = fleet.collected_once(_each("a", "b"), "yes")
    assert [run["options"] for run in removing] == [
        {"domain": domain, "collect": False, "compact_below": None} for domain in ("a", "b")
    ]
    assert "domain" not in last["options"] and last["options"]["keep_last"] == -1
    for runs, collect in ((_each("a", "b"), "no"), (_each("a"), True), ([], True)):
        assert fleet.collected_once(runs, collect) == runs


@pytest.mark.parametrize(
    "machines", ["a, b", ["a", "b"], ["a", {"domain": "b"}], '["a", {"domain": "b", "host": "kvm1"}]']
)
def test_machines_may_be_given_as_a_list_or_as_a_survey_gives_them(machines: Any) -> None:
    runs = fleet.machines_of(machines, "kvm1", ["kvm1"], HOSTS)
    assert runs == [{"label": name, "options": {"domain": name}} for name in ("a", "b")]


@pytest.mark.parametrize(
    ("own", "passed"),
    [
        ({}, {}),
        ({"restore_point": "", "until": ""}, {}),
        ({"restore_point": "id"}, {"restore_point": "id", "until": None}),
        ({"restore_point": "latest"}, {"restore_point": "latest", "until": None}),
        ({"until": "2026-11-22"}, {"restore_point": None, "until": "2026-11-22"}),
        ({"until": "2026-11-22", "restore_point": "id"}, {"restore_point": "id", "until": "2026-11-22"}),
    ],
)
def test_a_restore_point_or_time_of_a_machine_excludes_both_of_all_machines(own: Any, passed: Any) -> None:
    """cbt_each drops options that are None."""
    [run] = fleet.machines_of([{"domain": "a", **own}], "kvm1", ["kvm1"], HOSTS)
    assert run["options"] == {"domain": "a", **passed}


@pytest.mark.parametrize("key", ["domain", "name", "guest"])
def test_a_machine_may_be_named_by_an_alias_of_the_option(key: str) -> None:
    assert [run["label"] for run in fleet.machines_of([{key: "a"}], "kvm1", ["kvm1"], HOSTS)] == ["a"]


def test_a_machine_without_a_domain_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="Set domain to its name or UUID"):
        fleet.machines_of([{"restore_point": "latest"}], "kvm1", ["kvm1"], HOSTS)


def test_a_machine_is_restored_on_its_host_only() -> None:
    machines = [{"domain": "a", "host": "kvm2", "new_name": "copy"}, {"domain": "b", "host": "kvm1"}]
    assert [run["label"] for run in fleet.machines_of(machines, "kvm1", HOSTS, HOSTS)] == ["b"]
    assert fleet.machines_of(machines, "kvm2", ["kvm2"], HOSTS) == [
        {"label": "copy", "options": {"domain": "a", "new_name": "copy"}}
    ]


@pytest.mark.parametrize("machine", ["a", {"domain": "a", "host": "kvm9"}, {"domain": "a", "host": ""}])
def test_a_machine_assigned_to_several_hosts_or_an_unknown_host_is_refused(machine: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="Cannot restore a on .* limit the play to one"):
        fleet.machines_of([machine], "kvm1", HOSTS, HOSTS)


def _outcome(failed: bool, text: str) -> dict[str, Any]:
    return {"outcomes": [{"label": "web1", "failed": failed, "text": text}]}


def test_the_summary_names_what_failed_where_and_why() -> None:
    found = {"domains": [], "missing": []}
    hostvars: dict[str, Any] = {
        "kvm1": {"backup_found": found, "backup_outcome": _outcome(False, "done")},
        "kvm2": {"backup_found": found, "backup_outcome": _outcome(True, "no space")},
        "kvm3": {
            "backup_found": found,
            "backup_outcome": {**_outcome(True, "not begun"), "unreachable": True, "msg": "gone"},
        },
        "kvm4": {"backup_found": {"unreachable": True, "msg": "no route"}, "backup_outcome": {"skipped": True}},
        "kvm5": {"backup_found": {"failed": True, "msg": "no libvirt"}},
        "kvm6": {
            "backup_found": found,
            "backup_store": {"failed": True, "msg": "no repository"},
            "backup_outcome": {"skipped": True},
        },
        "kvm7": {"backup_found": {"msg": "not installed"}, "backup_outcome": {"skipped": True}},
        "kvm8": {},
        "kvm9": {
            "backup_found": {"repository": {"id": "1"}},
            "backup_points": {"failed": True, "msg": "no list"},
            "backup_outcome": {"skipped": True},
        },
        "kvm10": {
            "backup_found": {"repository": {"id": "1"}},
            "backup_points": {"skipped": True},
            "backup_outcome": {"skipped": True},
        },
    }
    told = fleet.summary(list(hostvars), hostvars, ["reconcile", "backup"])
    assert told["lines"] == [
        "backup on kvm1: web1: done",
        "backup on kvm2: FAILED: web1: no space",
        "backup on kvm3: LOST: gone",
        "backup on kvm3: FAILED: web1: not begun",
        "backup on kvm4: UNREACHABLE: no route",
        "backup on kvm5: FAILED: no libvirt",
        "backup on kvm6: FAILED: no repository",
        "backup on kvm7: not available in check mode: not installed",
        "backup on kvm8: FAILED: not reached",
        "backup on kvm9: FAILED: no list",
    ]
    assert told["failed"] == ["kvm2", "kvm3", "kvm4", "kvm5", "kvm6", "kvm8", "kvm9"]
    assert told["ran"] == ["backup"]
    assert fleet.summary(["kvm8"], hostvars, ["reconcile", "backup"])["ran"] == []


def test_a_name_is_missing_only_if_no_host_has_it() -> None:
    here = [{"name": "web1", "uuid": "u", "state": "running"}]
    hostvars: dict[str, Any] = {
        "kvm1": {"backup_found": {"domains": here, "missing": ["db1", "gone"]}},
        "kvm2": {"backup_found": {"domains": [], "missing": ["web1", "db1", "gone"]}},
        "kvm3": {
            "backup_found": {"domains": [{"name": "db1", "uuid": "v", "state": "shutoff"}], "missing": ["web1", "gone"]}
        },
    }
    told = fleet.summary(HOSTS, hostvars, "backup,verify")
    assert (told["missing"], told["failed"]) == (["gone"], [])
    assert told["lines"] == ["backup: MISSING: gone was not found on any host in this play"]


def test_every_filter_is_documented_as_internal() -> None:
    folder = Path(fleet.__file__).parent
    names = {path.stem for path in folder.glob("*.yml")}
    assert names == set(fleet.FilterModule().filters())
    for name in names:
        described = yaml.safe_load((folder / f"{name}.yml").read_text())["DOCUMENTATION"]["description"]
        assert described[-1] == "Internal to the roles of this collection."
