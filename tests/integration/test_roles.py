# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles and playbooks as people run them: check mode first, then the run, then a second one that changes nothing."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lab.cluster import Cluster
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from module_process import created
from node_backup import back_up_in
from plays import Play, chroot

from _cbt.hypervisor import scratch

MIB = 1 << 20


@pytest.fixture
def play(collections: Path, tmp_path: Path) -> Play:
    return Play(collections, tmp_path)


def test_disks_are_reported_and_converted_by_the_playbook(play: Play, hypervisor: Hypervisor) -> None:
    with (
        BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB, compat="0.10"), DiskSpec("sda", device="cdrom")]) as one,
        BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB, format="raw")], start=False) as two,
        BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB, format="raw")]) as other,
    ):
        one.write_random("vda", 0, MIB, 1)
        images = [domain.image("vda") for domain in (one, two, other)]
        playbook = "kvm.cbt.remediate_disk_formats"
        # Words for booleans, as -e and surveys give them.
        variables = {
            "cbt_domains": [one.name, f"{two.name[:-2]}*", other.name],
            "cbt_exclude_domains": other.name,
            "qcow2_v3_report_only": "false",
        }
        report = play.run(playbook, {**variables, "qcow2_v3_report_only": "true"})
        assert (
            report.count("which holds no bitmaps") == 1 and report.count("a RAW image") == 1 and "cdrom" not in report
        )
        assert play.changed(playbook, variables, "--check") == 1
        assert [domain.image("vda") for domain in (one, two, other)] == images
        assert play.changed(playbook, variables) == 1
        assert play.changed(playbook, variables) == 0
        assert play.changed(playbook, variables, "--check") == 0
        assert [domain.image("vda").name for domain in (one, two, other)] == ["vda-v3.qcow2", "vda.qcow2", "vda.raw"]
        assert [image.exists() for image in images] == [False, True, True]


def test_a_domain_that_fails_does_not_stop_the_others_and_fails_the_play(play: Play, hypervisor: Hypervisor) -> None:
    with (
        BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB, format="raw")]) as one,
        BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB, format="raw")]) as two,
    ):
        first, second = sorted((one, two), key=lambda domain: domain.name)
        taken = first.image("vda").with_suffix(".qcow2")
        taken.write_text("somebody else's")
        play.run("kvm.cbt.remediate_disk_formats", {"cbt_domains": [one.name, two.name]}, fails="exists already")
        assert (first.image("vda").suffix, second.image("vda").suffix) == (".raw", ".qcow2")


def test_a_window_converts_the_disks_of_a_domain_that_shuts_down(play: Play, hypervisor: Hypervisor) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB, compat="0.10")]) as domain:
        variables = {"cbt_domains": domain.name, "qcow2_v3_window": True, "qcow2_v3_shutdown_timeout": 1}
        # It has no system that would.
        play.run("role:kvm.cbt.qcow2_v3", variables, fails="did not shut down within 1 s")
        assert domain.running and domain.image("vda").name == "vda.qcow2"


def test_a_prepared_host_gets_its_folders_once(play: Play, workspace: Path) -> None:
    variables = {
        "cbt_repository": str(workspace / "repository"),
        "prepare_scratch_dir": str(workspace / "scratch"),
        "prepare_features": ["s3", "zstd"],
    }
    assert play.changed("kvm.cbt.prepare", variables, "--check") == 3
    assert not (workspace / "repository").exists()
    assert play.changed("kvm.cbt.prepare", variables) == 3
    assert (workspace / "repository" / "repository.json").exists()
    modes = {name: oct((workspace / name).stat().st_mode & 0o7777) for name in ("repository", "scratch")}
    assert modes == {"repository": "0o700", "scratch": "0o711"}
    assert play.changed("kvm.cbt.prepare", variables) == 0
    assert play.changed("kvm.cbt.prepare", variables, "--check") == 0


def test_a_link_that_a_store_puts_in_the_place_of_the_repository_changes_no_folder_of_the_host(
    play: Play, workspace: Path
) -> None:
    host = workspace / "host"
    host.mkdir()
    host.chmod(0o755)
    (workspace / "share").symlink_to("host")
    for written in ("share", "share/"):
        variables = {"cbt_repository": f"{workspace}/{written}", "prepare_create_repository": False}
        assert play.changed("kvm.cbt.prepare", variables) == 0
    assert oct(host.stat().st_mode & 0o7777) == "0o755"
    assert list(host.iterdir()) == []


def test_outdated_or_missing_software_is_refused_before_anything_is_created(play: Play, workspace: Path) -> None:
    variables: dict[str, Any] = {"cbt_repository": str(workspace / "repository")}
    newest = {"libvirt": "7.0.0", "qemu": "99.1.0", "python": "3.9.0"}
    for options in ((), ("--check",)):
        play.run(
            "role:kvm.cbt.prepare",
            {**variables, "__prepare_minimum": newest},
            *options,
            fails="is too old. Changed block tracking requires 99.1.0 or later",
        )
    assert not (workspace / "repository").exists()


def test_an_older_libvirt_has_incremental_backup_switched_on_once(play: Play, hypervisor: Hypervisor) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        variables = {"cbt_domains": [domain.name], "__prepare_switched_on": "99.0.0"}
        assert play.changed("role:kvm.cbt.prepare", variables, "--check") == 1
        assert play.changed("role:kvm.cbt.prepare", variables) == 1
        assert "incremental-backup" in domain.xml(inactive=True)
        assert play.changed("role:kvm.cbt.prepare", variables) == 0


def test_all_modules_of_a_role_append_to_the_log_that_cbt_log_path_names(
    play: Play, hypervisor: Hypervisor, workspace: Path, tmp_path: Path
) -> None:
    log = tmp_path / "cbt.log"
    repository = created(workspace, workspace / "repository")
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        variables = {"cbt_repository": repository, "cbt_domains": [domain.name]}
        play.run("role:kvm.cbt.backup", {**variables, "cbt_log_path": ""})
        assert not log.exists()
        play.run("role:kvm.cbt.backup", {**variables, "cbt_log_path": str(log)})
    ends = re.findall(r"^\S+ INFO (\w+)\[\d+\] - succeeded ", log.read_text(), re.MULTILINE)
    assert ends == ["cbt_domain_info", "cbt_backup"]
    assert f" started domain={domain.uuid} repository={repository} " in log.read_text()


# Stands in for systemd, with the units of a host with modular daemons: remembers what is enabled and started.
SYSTEMCTL = """#!/bin/sh
for word; do case "$word" in *.service | *.socket) unit="$word" ;; esac; done
cd /run/systemd/system
case "$*" in
*list-units*) echo "libvirtd.service loaded inactive dead libvirt" ;;
*list-unit-files*) printf '%s disabled enabled\\n' libvirtd.service virtqemud.service ;;
*is-enabled*) if [ -e "$unit.enable" ]; then echo enabled; else echo disabled; exit 1; fi ;;
*show*) echo "Id=$unit
LoadState=loaded
ActiveState=$(if [ -e "$unit.start" ]; then echo active; else echo inactive; fi)" ;;
"enable "* | "start "*) touch "$unit.$1" ;;
esac
"""


def test_a_fresh_host_is_prepared_and_check_mode_works_before(
    collections: Path, tmp_path: Path, workspace: Path
) -> None:
    with chroot(workspace) as root:
        play = Play(
            collections,
            tmp_path,
            f"{root} ansible_connection=community.general.chroot ansible_python_interpreter=/usr/bin/python3",
        )
        variables = {
            "cbt_repository": "/backup",
            "prepare_features": ["encryption"],
            "prepare_hypervisor": "true",
            # As on a host whose distribution lacks lz4, and which does not allow the repository that has it.
            "__prepare_lz4_elsewhere": True,
            "__prepare_lz4": "python3-lz4-of-nowhere",
        }
        assert play.changed("kvm.cbt.prepare", variables, "--check") == 3
        assert not (root / "backup").exists() and not (root / "usr/bin/qemu-img").exists()
        printed = play.run("kvm.cbt.prepare", variables)
        assert "lz4 is missing" in printed and "set prepare_epel to true" in printed
        assert "This host does not run systemd" in printed
        assert (root / "backup/repository.json").exists()
        assert (root / "usr/bin/qemu-storage-daemon").exists() and (root / "backup").is_dir()
        assert (root / "usr/bin/qemu-system-x86_64").exists() and (root / "usr/sbin/libvirtd").exists()
        # ufw writes its rules also while it is not active, which it cannot be here.
        install = "apt-get install --quiet --yes --no-install-recommends ufw"
        run_tool(["chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", *install.split()])
        variables = {
            "cbt_repository": "/backup",
            "prepare_features": ["encryption"],
            "prepare_firewall": "nbd,libvirt_tls",
            "prepare_firewall_sources": "192.0.2.10",
            "__prepare_ufw_active": True,
            "prepare_hypervisor": True,
            "__prepare_systemd": True,
        }
        (root / "run/systemd/system").mkdir(parents=True, exist_ok=True)
        (root / "usr/bin/systemctl").write_text(SYSTEMCTL)
        (root / "usr/bin/systemctl").chmod(0o755)
        assert play.changed("kvm.cbt.prepare", variables) == 3
        done = {path.name for path in (root / "run/systemd/system").iterdir()}
        assert {"virtqemud.service.enable", "virtqemud.socket.enable", "virtqemud.socket.start"} <= done
        assert {"virtstoraged-ro.socket.enable", "virtsecretd-admin.socket.start"} <= done
        assert len(done) == 1 + 2 * len(("", "-ro", "-admin")) * 7 and not [
            each for each in done if each.startswith("libvirtd")
        ]
        rules = re.findall(r"tuple ### (.*)", (root / "etc/ufw/user.rules").read_text())
        assert rules == [f"allow tcp {ports} 0.0.0.0/0 any 192.0.2.10 in" for ports in ("10809:10872", "16514")]
        run_tool(
            ["chroot", root, "/usr/bin/python3", "-c", "import libvirt, libvirt_qemu, nbd, lz4.block, cryptography"]
        )
        assert play.changed("kvm.cbt.prepare", variables) == 0
        variables["prepare_hypervisor"] = False  # saves asking for each unit again
        assert play.changed("kvm.cbt.prepare", variables, "--check") == 0
        # What was installed runs machines, and backs them up.
        with Cluster(1, trees=[root]) as cluster:
            (node,) = cluster.nodes
            with BlockDomain(node.hypervisor, [DiskSpec("vda", MIB)]) as domain:
                place = node.hypervisor.folder()
                taken = back_up_in(node, str(place / "repository"), domain=domain.name, scratch_dir=str(place))
                assert taken["disks"]["vda"]["mode"] == "full", taken


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """AppArmor's profiles of this machine, to write to."""
    return Path(shutil.copytree("/etc/apparmor.d", tmp_path / "apparmor.d"))


def _variables(profiles: Path, **fields: Any) -> dict[str, Any]:
    return {
        "apparmor_force": "true",
        "apparmor_folder": str(profiles),
        "apparmor_scratch_dirs": ["/var/tmp", "/srv/scratch files"],
        **fields,
    }


def test_rules_are_added_beside_those_of_others_and_removed_again(play: Play, profiles: Path) -> None:
    local = profiles / "local/abstractions/libvirt-qemu"
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_text("  /srv/images/** rwk,\n")
    before = local.read_bytes()
    assert play.changed("role:kvm.cbt.apparmor", _variables(profiles), "--check") == 1
    assert local.read_bytes() == before
    assert play.changed("role:kvm.cbt.apparmor", _variables(profiles)) == 1
    assert play.changed("role:kvm.cbt.apparmor", _variables(profiles)) == 0
    assert (
        '"/srv/scratch files/kvm-cbt-{,remote-}@{profile_name}-*/**" rwk,' in local.read_text()
        and "/srv/images/** rwk," in local.read_text()
    )
    for options in (("--check",), ()):
        assert play.changed("role:kvm.cbt.apparmor", _variables(profiles, apparmor_state="absent"), *options) == 1
    assert local.read_bytes() == before
    assert play.changed("role:kvm.cbt.apparmor", _variables(profiles, apparmor_state="absent")) == 0


def _opened(profiles: Path, uuid: str) -> list[re.Pattern[str]]:
    """What AppArmor's parser makes of all paths in the profile of a domain."""
    profile = f"#include <tunables/global>\nprofile libvirt-{uuid} flags=(attach_disconnected) {{\n#include <abstractions/libvirt-qemu>\n}}\n"
    parser = ["apparmor_parser", "-Q", "-K", "-D", "rule-exprs", "--base", profiles]
    dumped = subprocess.run(
        parser, input=profile, text=True, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout
    return [re.compile(each) for each in re.findall(r"^aare: /.*?   ->   (.*)$", dumped, re.MULTILINE)]


def test_the_rules_open_a_domains_folder_to_its_own_qemu_alone(play: Play, profiles: Path) -> None:
    play.run("role:kvm.cbt.apparmor", _variables(profiles))
    one, other = "0a1b2c3d-0000-4000-8000-000000000001", "0a1b2c3d-0000-4000-8000-000000000002"
    rules = {uuid: _opened(profiles, uuid) for uuid in (one, other)}
    for parent, prefix in itertools.product(
        ("/var/tmp", "/srv/scratch files"), (scratch.local_prefix(one)[0], scratch.remote_prefix(one))
    ):
        folder = f"{parent}/{prefix}a1b2c3d4/"
        assert any(rule.fullmatch(folder) for rule in rules[one])
        for path in (f"{folder}nbd.sock", f"{folder}vda.scratch"):
            assert any(rule.fullmatch(path) for rule in rules[one]), path
            assert [rule for rule in rules[other] if rule.fullmatch(path)] == []


def test_a_scratch_folder_with_ambiguous_backups_is_refused(play: Play, profiles: Path) -> None:
    play.run(
        "role:kvm.cbt.apparmor",
        _variables(profiles, apparmor_scratch_dirs=["/srv/" + "x" * 27]),
        fails="must not be longer than 31 characters",
    )
    assert play.changed("role:kvm.cbt.apparmor", _variables(profiles, apparmor_scratch_dirs=["/srv/" + "x" * 26])) == 1


def test_rules_that_do_not_parse_are_not_installed(play: Play, profiles: Path) -> None:
    wrong = _variables(profiles, apparmor_scratch_dirs=['/with"quote'])
    play.run("role:kvm.cbt.apparmor", wrong, fails="AppArmor parser error")
    assert (
        not (profiles / "local/abstractions/libvirt-qemu").exists()
        or "kvm.cbt" not in (profiles / "local/abstractions/libvirt-qemu").read_text()
    )


def test_nothing_is_done_where_apparmor_is_not_active(play: Play, profiles: Path) -> None:
    active = Path("/sys/module/apparmor/parameters/enabled")
    if active.exists() and active.read_text().strip() == "Y":
        pytest.skip("AppArmor is active on this machine")
    assert play.changed("role:kvm.cbt.apparmor", _variables(profiles, apparmor_force="false")) == 0
    assert (
        play.changed("role:kvm.cbt.apparmor", {"apparmor_force": True, "apparmor_folder": str(profiles / "none")}) == 0
    )


def test_selinux_gives_scratch_folders_a_label_qemu_may_use(collections: Path, tmp_path: Path, workspace: Path) -> None:
    with chroot(workspace) as root:
        play = Play(
            collections,
            tmp_path,
            f"{root} ansible_connection=community.general.chroot ansible_python_interpreter=/usr/bin/python3",
        )
        role = "role:kvm.cbt.apparmor"
        variables = {"apparmor_force": True, "apparmor_scratch_dirs": ["/var/tmp", "/srv/scratch files"]}
        assert play.changed(role, variables) == 0, "neither is installed"
        run_tool(["chroot", root, "apt-get", "update", "--quiet"])
        run_tool(
            [
                "chroot",
                root,
                "apt-get",
                "install",
                "--quiet",
                "--yes",
                "--no-install-recommends",
                "selinux-policy-default",
            ]
        )
        assert play.changed(role, variables, "--check") == 1, "the tool itself is missing yet"
        assert play.changed(role, variables) == 2
        assert play.changed(role, variables) == play.changed(role, variables, "--check") == 0

        def label(path: str) -> str:
            return run_tool(["chroot", root, "matchpathcon", "-n", path]).strip()

        for folder in variables["apparmor_scratch_dirs"]:
            assert ":svirt_image_t:" in label(f"{folder}/kvm-cbt-0a1b2c3d-x/nbd.sock") and ":svirt_image_t:" in label(
                f"{folder}/kvm-cbt-0a1b2c3d-x"
            )
            assert ":svirt_image_t:" not in label(f"{folder}/other")
        assert play.changed(role, {**variables, "apparmor_state": "absent"}) == 1
        assert ":svirt_image_t:" not in label("/var/tmp/kvm-cbt-0a1b2c3d-x")
