# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks make two hosts ready for backups from one of them of the other's domains, over certificates of the role nbd_tls, and back up."""

from __future__ import annotations

import json
from pathlib import Path

from fleet_plays import Fleet
from lab.cluster import Cluster
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.reference import same_bytes, snapshot_reference

from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.repository.repository import open_repository

MIB = 1 << 20


def test_a_domain_is_backed_up_over_the_certificates_of_the_role(collections: Path, tmp_path: Path) -> None:
    with Cluster(2, shared=False, ssh=True) as cluster:
        hypervisor, reader = cluster.nodes
        fleet = Fleet(
            cluster,
            collections,
            tmp_path,
            "localhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3",
        )
        repository = reader.hypervisor.folder() / "repository"
        with BlockDomain(hypervisor.hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain:
            domain.write_random("vda", 0, 4 * MIB, 1)
            backup = {
                "uri": f"qemu+ssh://{hypervisor.name}/system",
                "transport": "tcp",
                "domain": domain.name,
                "repository": str(repository),
                "create_repository": True,
            }
            issue = {
                "hosts": f"{hypervisor.name}:{reader.name}",
                "gather_facts": False,
                "roles": [{"role": "kvm.cbt.nbd_tls", "nbd_tls_kinds": ["server", "client"]}],
                "vars": {
                    "nbd_tls_ca_folder": str(tmp_path / "authority"),
                    "nbd_tls_ca_in_container": True,  # the tests may run in one
                    "nbd_tls_addresses": ["{{ lab_addresses[inventory_hostname] }}"],
                    "lab_addresses": {node.name: node.address for node in cluster.nodes},
                    "nbd_tls_restart": False,  # nodes have no systemd
                },
            }
            take = {
                "hosts": reader.name,
                "gather_facts": False,
                "tasks": [{"name": "Back up", "kvm.cbt.cbt_backup": backup}],
            }
            certificates, night = tmp_path / "certificates.yml", tmp_path / "night.yml"
            certificates.write_text(json.dumps([issue]))
            night.write_text(json.dumps([take]))
            fleet.run(str(certificates), {})
            hypervisor.hypervisor.restart_daemon()
            fleet.run(str(night), {})
            domain.write("vda", 2 * MIB, 1 << 16, 0xAA)
            fleet.run(str(night), {})
            made = open_repository(str(repository))
            points = made.points_of(domain.handle.UUIDString()).points
            assert [point.disks[0].mode for point in points] == ["full", "incremental"]
            assert fleet.changed(str(certificates), {}) == {}
            # Revoked, the reading host gets no byte any more.
            issue["vars"]["nbd_tls_revoked"] = [reader.name]  # type: ignore[index]
            certificates.write_text(json.dumps([{**issue, "hosts": hypervisor.name}]))
            fleet.run(str(certificates), {})
            fleet.run(str(night), {}, fails="Cannot connect to the NBD export")
            assert len(made.points_of(domain.handle.UUIDString()).points) == 2
            copy = snapshot_reference(domain, tmp_path)["vda"]
            restored = restore(made, RestoreRequest(domain.name, dest=str(tmp_path), format="raw")).disks[0].path
            assert same_bytes(Path(restored), copy) is None
