# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Ceph cluster on this machine: one monitor, one OSD which keeps everything in memory, and an object gateway on demand."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Sequence
from contextlib import suppress

from lab.closing import Closing
from lab.errors import LabError
from lab.object_store import Account, free_port, listens
from lab.process import end_process, run_tool, wait_until
from lab.workspace import make_workspace

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "rbd")
GATEWAY_PROGRAMS = (*PROGRAMS, "radosgw", "radosgw-admin")
_START_TIMEOUT = 60.0
_POOL = "lab"

# Access is open: the monitor listens on the loopback alone, for the time of a test.
_CONFIG = """
[global]
fsid = {fsid}
mon_host = [{address}]
public_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}
admin_socket =
log_file = {folder}/$name.log
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = {memory}
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_crit = 0
ms_bind_ipv6 = false
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off

[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:{gateway_port}
rgw_data = {folder}/rgw
rgw_run_sync_thread = false
rgw_data_log_num_shards = 1
rgw_md_log_max_shards = 1
rgw_gc_max_objs = 1
rgw_lc_max_objs = 1
rgw_objexp_hints_num_shards = 1
"""


class Ceph(Closing):
    """A cluster with one pool for RBD images; `memory` is in bytes. Use as a context manager, or call `close()`."""

    def __init__(self, memory: int = 512 << 20) -> None:
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            raise LabError(f"not installed: {', '.join(missing)}")
        self.folder = make_workspace("ceph-")  # QEMU reads the configuration
        self.config = self.folder / "ceph.conf"
        self._gateway_port = free_port()
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._begin(memory)
        except BaseException:
            self.close()
            raise

    def create(self, image: str, size: int) -> None:
        """Make an empty RBD image of `size` bytes; QEMU's name of it is `name(image)`."""
        self._run(["rbd", "create", "--size", f"{size}B", self.name(image)])

    def name(self, image: str) -> str:
        """Pool and image."""
        return f"{_POOL}/{image}"

    def serve_s3(self) -> Account:
        """Start an object gateway; who may use it."""
        (self.folder / "rgw").mkdir()
        # Of its own accord it talks to the monitor only by encryption, for which there are no keys here.
        self._serve(["radosgw", "-n", "client.rgw.a", "--ms-mon-client-mode", "crc"])
        wait_until(lambda: listens(self._gateway_port), _START_TIMEOUT, "start of the object gateway")
        account = Account(f"http://127.0.0.1:{self._gateway_port}", "LABACCESSKEY", uuid.uuid4().hex)
        names = ["--uid", "lab", "--display-name", "lab"]
        self._run(
            [
                "radosgw-admin",
                "user",
                "create",
                *names,
                "--access-key",
                account.access_key,
                "--secret-key",
                account.secret_key,
            ]
        )
        return account

    def close(self) -> None:
        """End the daemons and forget everything. May be called twice."""
        while self._daemons:
            daemon = self._daemons.pop()
            with suppress(LabError):
                end_process(daemon.pid, timeout=10)
            daemon.kill()
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, memory: int) -> None:
        fsid, address = str(uuid.uuid4()), f"v2:127.0.0.1:{free_port()}"
        self.config.write_text(
            _CONFIG.format(
                fsid=fsid, address=address, folder=self.folder, memory=memory, gateway_port=self._gateway_port
            )
        )
        for name in ("mon", "osd"):
            (self.folder / name).mkdir()
        map_of_monitors = str(self.folder / "monmap")
        run_tool(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[{address}]", map_of_monitors])
        self._run(["ceph-mon", "--mkfs", "-i", "a", "--monmap", map_of_monitors])
        self._serve(["ceph-mon", "-i", "a"])
        self._run(["ceph", "osd", "create"])
        self._run(["ceph-osd", "--mkfs", "-i", "0", "--no-mon-config"])
        self._serve(["ceph-osd", "-i", "0"])
        wait_until(lambda: "1 up" in self._run(["ceph", "osd", "stat"]), _START_TIMEOUT, "start of the OSD")
        self._run(["ceph", "osd", "pool", "create", _POOL, "8"])
        self._run(["rbd", "pool", "init", _POOL])

    def _run(self, command: Sequence[str]) -> str:
        return run_tool(["timeout", "60", command[0], "--conf", str(self.config), *command[1:]])

    def _serve(self, command: Sequence[str]) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            daemon = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    command[0],
                    "--conf",
                    str(self.config),
                    *command[1:],
                    "--foreground",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._daemons.append(daemon)
