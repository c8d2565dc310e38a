# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions of roles on hosts that do not run here, from their variables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

ROLES = Path(__file__).resolve().parents[3] / "roles"
MODULAR_SOCKETS = [
    f"virt{driver}d{kind}.socket"
    for driver in ("qemu", "interface", "network", "nodedev", "nwfilter", "secret", "storage")
    for kind in ("", "-ro", "-admin")
]
MONOLITHIC = (["libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket"], ["libvirtd.service"])
MODULAR = (["virtqemud.service", *MODULAR_SOCKETS], MODULAR_SOCKETS)
DISABLED, RUNNING = {"status": "disabled", "state": "inactive"}, {"status": "disabled", "state": "running"}
ENABLED = {"status": "enabled", "state": "inactive"}


def evaluated(role: str, name: str, files: Sequence[str], **given: Any) -> Any:
    """Return a variable of a role, with others set."""
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for file in ("defaults/main.yml", "vars/main.yml", *files):
        variables.update(loader.load_from_file(str(ROLES / role / file), trusted_as_template=True))
    variables.update(given)
    return Templar(loader=loader, variables=variables).template(variables[name])


def variable(name: str, family: str = "RedHat", **facts: Any) -> Any:
    """Return a variable of the role prepare on a host with these facts."""
    known = {"service_mgr": "systemd", "architecture": "x86_64", **facts}
    return evaluated("prepare", name, [f"vars/{family}.yml"], ansible_facts=known)


@pytest.mark.parametrize(
    ("services", "units"),
    [
        ({"libvirtd.service": ENABLED}, MONOLITHIC),  # Debian and Ubuntu
        ({"libvirtd.service": DISABLED}, MONOLITHIC),
        ({"libvirtd.service": DISABLED, "virtqemud.service": DISABLED}, MODULAR),  # RHEL 9, SLES 15 SP6
        ({"libvirtd.service": DISABLED, "virtqemud.service": ENABLED}, MODULAR),
        ({"libvirtd.service": ENABLED, "virtqemud.service": DISABLED}, MONOLITHIC),  # SLES 15 SP4, or upgraded hosts
        ({"libvirtd.service": RUNNING, "virtqemud.service": DISABLED}, MONOLITHIC),
        ({"virtqemud.service": ENABLED}, MODULAR),  # without the package of the monolithic daemon
    ],
)
def test_the_daemons_that_are_in_use_are_enabled_and_started(services: dict[str, Any], units: Any) -> None:
    found = [list(variable(name, services=services)) for name in ("__prepare_enabled", "__prepare_started")]
    assert tuple(found) == units
    assert variable("__prepare_has_libvirt", services=services)


def test_no_daemon_is_started_without_systemd_or_libvirt() -> None:
    assert not variable("__prepare_has_libvirt", services={"sshd.service": ENABLED})
    assert not variable("__prepare_has_libvirt", services={"libvirtd.service": ENABLED}, service_mgr="sysvinit")


@pytest.mark.parametrize(
    ("family", "distribution", "elsewhere"),
    [
        ("Debian", "Ubuntu", False),
        ("Suse", "openSUSE Leap", False),
        ("RedHat", "Fedora", False),
        ("RedHat", "RedHat", True),
        ("RedHat", "Rocky", True),
        ("RedHat", "AlmaLinux", True),
    ],
)
def test_lz4_is_in_epel_for_distributions_derived_from_fedora(family: str, distribution: str, elsewhere: bool) -> None:
    assert variable("__prepare_lz4_elsewhere", family, distribution=distribution) == elsewhere


def test_epel_is_named_for_each_distribution() -> None:
    packages = variable("__prepare_epel_packages", distribution_major_version="9")
    assert packages["RedHat"] == "https://dl.fedoraproject.org/pub/epel/epel-release-latest-9.noarch.rpm"
    assert packages["OracleLinux"] == "oracle-epel-release-el9"
    assert variable("__prepare_epel_key", distribution_major_version="9").endswith("/RPM-GPG-KEY-EPEL-9")


@pytest.mark.parametrize(
    ("family", "architecture", "package"),
    [
        ("Debian", "x86_64", "qemu-system-x86"),
        ("Debian", "aarch64", "qemu-system-arm"),
        ("RedHat", "x86_64", "qemu-kvm"),
        ("Suse", "x86_64", "libvirt-daemon-qemu"),
    ],
)
def test_a_hypervisor_gets_qemu_for_its_architecture(family: str, architecture: str, package: str) -> None:
    assert package in variable("__prepare_hypervisor_packages", family, architecture=architecture)


@pytest.fixture(scope="module")
def _lookups() -> None:
    """Templates can use lookup plugins."""
    init_plugin_loader()


JOB_VARIABLES = ["AWX_JOB_ID", "AWX_HOST", "KUBERNETES_SERVICE_HOST"]


@pytest.mark.usefixtures("_lookups")
@pytest.mark.parametrize(
    ("environment", "given", "in_job"),
    [
        ({}, {}, False),
        *(({name: "7"}, {}, True) for name in JOB_VARIABLES),
        ({}, {"awx_job_id": 7}, True),
        ({}, {"tower_job_id": 7}, True),
        ({"AWX_JOB_ID": "7"}, {"nbd_tls_ca_host": "kvm1"}, False),
    ],
)
def test_a_job_whose_controller_is_deleted_afterwards_is_recognized(
    environment: dict[str, str], given: dict[str, Any], in_job: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in JOB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert evaluated("nbd_tls", "__nbd_tls_in_job", (), **given) == in_job
