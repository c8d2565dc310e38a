# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports as people use them: modules of the collection, and the clients of others: nbdcopy, nbdinfo, qemu-img and qemu-io."""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest
from lab.certificates import Authority
from lab.object_store import Account, free_port
from lab.process import alive, run_tool, wait_until
from module_process import created, run_module
from plays import run_playbook
from stored_points import UUID, publish

from _cbt.grid import BLOCK_SIZE
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.repository.format import codecs, manifests, names
from _cbt.repository.format.manifests import DiskRecord, RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import Encoded
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.sharing import holding, holds
from _cbt.repository.stores.s3_options import S3Options

PASSPHRASE = "correct horse battery staple"
BLOCKS = 250
FOLDER = Path("/run/kvm-cbt/exports")


def published(repository: Repository, seed: int) -> RestorePoint:
    """A point of two disks with runs and holes of any length, of which the second is not a whole number of blocks."""
    rng = random.Random(seed)
    taken = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=100 - seed)
    point_id, encode = manifests.new_id(taken), codecs.encoder("lz4")
    writer, builders = repository.writer(), {}
    for target, size in (("vda", BLOCKS * BLOCK_SIZE), ("vdb", 3 * BLOCK_SIZE + 512)):
        builders[target] = builder = MapBuilder(size)
        block, stop = 0, -(-size // BLOCK_SIZE)
        while block < stop:
            for _number in range(min(rng.choice([1, 2, 7, 16]), stop - block)):
                data = rng.choice([rng.randbytes(64) * 1024, rng.randbytes(BLOCK_SIZE)])
                data = data[: min(BLOCK_SIZE, size - block * BLOCK_SIZE)]
                stored = Encoded(repository.keys.block_id(data), *encode(data), len(data))
                builder.put(block, 1, *writer.append([stored]))
                block += 1
            block += rng.choice([0, 1, 5, 40])
    written = writer.finish()
    maps = {names.map_file(target): builder.finish(written).encode() for target, builder in builders.items()}
    files = repository.put_files(names.point_folder(UUID, point_id), {**maps, "domain.xml": b"<domain/>"})
    disks = tuple(
        DiskRecord(target, size, "full", "", files[names.map_file(target)], None, {}, {})
        for target, size in (("vda", BLOCKS * BLOCK_SIZE), ("vdb", 3 * BLOCK_SIZE + 512))
    )
    return publish(repository, point_id, taken, disks, {"domain.xml": files["domain.xml"]})


def options_beside(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


class World:
    """A repository with restore points, and the exports of them that the test began."""

    def __init__(self, folder: Path, points: int = 1, **options: Any) -> None:
        self.folder = folder
        self.options: dict[str, Any] = {"repository": str(folder / "repository"), **options}
        created(folder, self.options["repository"], **options_beside(options, "repository"))
        s3 = S3Options(**options.get("s3", {}))
        self.location = RepositoryLocation(self.options["repository"], s3, options.get("passphrase"))
        self.points = [published(self.repository(), seed) for seed in range(1, 1 + points)]
        self._begun: set[str] = set()
        self.short = Path(tempfile.mkdtemp())  # the path of a socket has a limit, which that of a test may reach
        self.sockets = self.short / "s"

    def repository(self) -> Repository:
        return open_repository(self.location)

    def run(self, check: bool = False, **options: Any) -> dict[str, Any]:
        """Run cbt_export with the test's repository and folder for sockets."""
        given = {**self.options, **options}
        if given.get("state", "present") == "present":
            given = {"domain": "web1", **({} if "address" in given else {"socket_dir": str(self.sockets)}), **given}
        result = run_module(self.folder, "cbt_export", check, **given)
        if "name" in result and not check:
            self._begun.add(result["name"])
        return result

    def end(self, name: str, **options: Any) -> dict[str, Any]:
        return self.run(state="absent", name=name, **options)

    def listed(self) -> list[dict[str, Any]]:
        """The exports of this test that cbt_export_info lists."""
        found = run_module(self.folder, "cbt_export_info")["exported"]
        return [each for each in found if each["repository"] == self.options["repository"]]

    def holds(self) -> list[str]:
        return [hold.purpose for hold in holds.listed(self.repository())]

    def raw(self, point: RestorePoint) -> dict[str, bytes]:
        """What a restore of a point writes."""
        dest = self.folder / f"restored-{point.id}"
        dest.mkdir()
        restore(self.repository(), RestoreRequest("web1", point.id, dest=str(dest), format="raw"))
        return {disk.target: (dest / f"web1-{disk.target}.raw").read_bytes() for disk in point.disks}

    def close(self) -> None:
        for name in self._begun:
            self.end(name)
        assert not [name for name in self._begun if (FOLDER / name).exists()]
        assert self.holds() == []
        shutil.rmtree(self.short)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, points=2)
    yield made
    made.close()


def uris(result: dict[str, Any]) -> dict[str, str]:
    assert "exports" in result, result
    return {each["target"]: each["uri"] for each in result["exports"]}


def read(uri: str, length: int = 0, offset: int = 0) -> bytes:
    """Read a disk, or a part of it, with libnbd."""
    client = nbd.NBD()
    client.connect_uri(uri)
    data = bytearray()
    end = offset + (length or client.get_size())
    while offset < end:
        data += client.pread(min(1 << 20, end - offset), offset)
        offset += min(1 << 20, end - offset)
    client.shutdown()
    return bytes(data)


def answering(pid: int) -> int:
    """The process that answers clients, which is the child of the server."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: bool(children.read_text().split()), 30, "a process that answers clients")
    return int(children.read_text().split()[0])


def kill_answering(pid: int) -> None:
    """Kill that process, and wait for its end: before it, the process may still accept a connection."""
    child = answering(pid)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not alive(child), 30, "the end of the process that answers clients", step=0.001)


@pytest.mark.parametrize("kind", ["plain", "encrypted"])
def test_clients_read_what_a_restore_writes(tmp_path: Path, kind: str) -> None:
    world = World(tmp_path, **({"passphrase": PASSPHRASE} if kind == "encrypted" else {"points": 3}))
    try:
        for point in world.points:
            found = uris(world.run(restore_point=point.id))
            for target, content in world.raw(point).items():
                copy = tmp_path / "copy"
                copy.unlink(missing_ok=True)
                run_tool(["nbdcopy", found[target], copy])
                assert copy.read_bytes() == content
                run_tool(["qemu-img", "compare", "-f", "raw", "-F", "raw", found[target], copy])
                mapped = json.loads(run_tool(["nbdinfo", "--json", "--map", found[target]]))
                assert sum(each["length"] for each in mapped) == len(content)
                for each in mapped:
                    part = content[each["offset"] : each["offset"] + each["length"]]
                    assert each["type"] == 0 or not part.strip(b"\0")
                assert {each["type"] for each in mapped} >= ({0, 3} if target == "vda" else {0})
    finally:
        world.close()


def test_a_repository_on_s3_is_served_through_a_cache(rclone: Account, tmp_path: Path) -> None:
    """The server gets the keys from the task, and asks the store for nothing twice that the cache holds."""
    world = World(tmp_path, repository=f"s3://{rclone.bucket()}/kvm", s3=rclone.options)
    try:
        made = world.run(cache_dir=str(tmp_path), cache_size="64M")
        content = world.raw(world.points[0])["vda"]
        for connections in (1, 4):
            run_tool(["nbdcopy", f"--connections={connections}", uris(made)["vda"], tmp_path / f"copy{connections}"])
            assert (tmp_path / f"copy{connections}").read_bytes() == content
        secret = rclone.secret_key.encode()
        for each in (made["exports"][0]["pid"], answering(made["exports"][0]["pid"])):
            assert all(secret not in Path(f"/proc/{each}/{file}").read_bytes() for file in ("cmdline", "environ"))
    finally:
        world.close()


def test_an_export_is_what_check_mode_predicts_and_a_second_run_changes_nothing(world: World) -> None:
    predicted = world.run(check=True)
    assert world.listed() == [] and world.holds() == [] and not world.sockets.exists()
    made = world.run()
    assert predicted["changed"] and made["changed"]
    assert uris(made) == uris(predicted)
    assert made["restore_point"] == world.points[-1].id
    assert world.holds() == [f"export {made['name']}"]
    again = world.run()
    assert not again["changed"]
    for name in ("exports", "hold", "running", "name"):
        assert again[name] == made[name] == world.listed()[0][name]
    other = world.run(name=made["name"], restore_point=world.points[0].id)
    assert other["failed"] and "exists already" in other["msg"] and "restore_point" in other["msg"]
    assert read(uris(made)["vdb"])
    foreseen = world.run(check=True, state="absent", domain="web1")
    assert foreseen["removed"] == [made["name"]] and foreseen["changed"] and world.listed()
    ended = world.run(state="absent", domain="web1")
    assert ended["removed"] == [made["name"]] and ended["changed"]
    assert not alive(made["exports"][0]["pid"]) and list(world.sockets.iterdir()) == []
    assert world.holds() == [] and world.listed() == []
    assert not world.end(made["name"])["changed"]


def test_the_process_that_answers_may_be_killed_while_clients_read_and_write(world: World) -> None:
    made = world.run(writable=True, overlay_dir=str(world.folder))
    pid, uri, truth = made["exports"][0]["pid"], uris(made)["vda"], bytearray(world.raw(world.points[-1])["vda"])
    rng = random.Random(5)
    for _kill in range(5):
        client = nbd.NBD()
        client.connect_uri(uri)
        offset, data = rng.randrange(len(truth) - 5000), rng.randbytes(5000)
        client.pwrite(data, offset)
        truth[offset : offset + 5000] = data
        inflight = [client.aio_pread(nbd.Buffer(1 << 20), 0) for _request in range(8)]
        assert inflight
        kill_answering(pid)
        assert read(uri) == truth  # waits in the backlog of the socket
    assert world.listed()[0]["exports"][0]["pid"] == pid
    assert not world.run(writable=True, overlay_dir=str(world.folder))["changed"]
    world.end(made["name"])
    assert read(uris(world.run())["vdb"]) != b"", "the repository is as it was"


def test_a_server_that_is_gone_is_started_again_with_one_hold(world: World) -> None:
    made = world.run()
    pid = made["exports"][0]["pid"]
    child = answering(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(child), 30, "the end of the process that answers clients")
    (lost,) = world.listed()
    assert not lost["running"] and lost["exports"][0]["pid"] is None
    again = world.run()
    assert again["changed"] and again["exports"][0]["pid"] != pid
    assert len(world.holds()) == 1
    assert read(uris(again)["vdb"]) == world.raw(world.points[-1])["vdb"]


def test_no_secret_is_in_arguments_environment_or_files(tmp_path: Path) -> None:
    world = World(tmp_path, passphrase=PASSPHRASE)
    try:
        made = world.run()
        pid = made["exports"][0]["pid"]
        seen = [Path(f"/proc/{each}/{file}") for each in (pid, answering(pid)) for file in ("cmdline", "environ")]
        seen += [path for path in (FOLDER / made["name"]).iterdir() if path.is_file()]
        assert len(seen) >= 7
        assert [path for path in seen if PASSPHRASE.encode() in path.read_bytes()] == []
        assert PASSPHRASE not in json.dumps(made)
        assert (FOLDER / made["name"]).stat().st_mode & 0o777 == 0o700
    finally:
        world.close()


def test_a_start_that_fails_leaves_nothing(world: World, tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        failed = world.run(address="127.0.0.1", port=port, tls=False)
    assert failed["failed"] and re.search(rf"Cannot listen on 127.0.0.1 port {port}: .*in use", failed["msg"])
    failed = world.run(address="127.0.0.1", port=port, tls_certificates=str(tmp_path))
    assert failed["failed"] and f"{tmp_path}/server-cert.pem" in failed["msg"]
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    for folder in (open_folder, open_folder / "ours"):
        failed = world.run(name="n", socket_dir=str(folder))
        assert failed["failed"] and f"Others can write to {open_folder}" in failed["msg"]
    failed = world.run(socket_dir=f"/run/{'x' * 100}")
    assert failed["failed"] and "x" * 100 in failed["msg"] and "107" in failed["msg"]
    for name, value in (("socket_owner", "no such user"), ("socket_group", "no such group"), ("socket_mode", "rw")):
        failed = world.run(**{name: value})
        assert failed["failed"] and value in failed["msg"]
    world.sockets.mkdir()
    (world.sockets / "file.sock").write_text("of the user")
    failed = world.run(name="file")
    assert failed["failed"] and "is not a socket" in failed["msg"]
    assert (world.sockets / "file.sock").read_text() == "of the user"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(world.sockets / "other.sock"))
        other.listen(1)
        failed = world.run(name="other")
        assert failed["failed"] and "Another process serves the socket" in failed["msg"]
    (pack,) = {ref.name for ref in world.repository().read_map(world.points[-1], "vda").packs}
    map_file = Path(world.options["repository"]) / world.points[-1].object_name(world.points[-1].disks[0].map)
    map_file.write_bytes(b"damaged")
    failed = world.run()
    assert failed["failed"] and pack and "damaged" in failed["msg"]
    assert world.listed() == [] and world.holds() == []
    assert not [path for path in FOLDER.iterdir() if str(tmp_path) in path.name]


def test_the_socket_is_of_those_it_is_for(world: World) -> None:
    made = world.run(socket_owner="nobody", socket_group="daemon", socket_mode="0660")
    (path,) = world.sockets.iterdir()
    assert (path.owner(), path.group(), path.stat().st_mode & 0o777) == ("nobody", "daemon", 0o660)
    assert world.sockets.stat().st_mode & 0o777 == 0o755
    reading = ["setpriv", "--reuid=nobody", "--clear-groups", "nbdinfo", "--size", uris(made)["vdb"]]
    world.folder.chmod(0o711)
    refused = subprocess.run([*reading[:1], "--reuid=daemon", *reading[2:]], capture_output=True, check=False)
    assert refused.returncode != 0


def test_tls_over_tcp_serves_those_with_a_certificate(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", "ours")
    server, client = (authority.issue(kind, "localhost", "127.0.0.1") for kind in ("server", "client"))
    port = free_port()
    made = world.run(address="127.0.0.1", port=port, tls_certificates=str(server))
    assert uris(made)["vdb"] == f"nbds://127.0.0.1:{port}/vdb"
    content = world.raw(world.points[-1])["vdb"]
    copy = tmp_path / "copy"
    run_tool(["nbdcopy", f"{uris(made)['vdb']}?tls-certificates={client}", copy])
    assert copy.read_bytes() == content
    other = Authority(tmp_path / "other", "theirs").issue("client", "localhost", "127.0.0.1")
    for refused in (f"{uris(made)['vdb']}?tls-certificates={other}", f"nbd://127.0.0.1:{port}/vdb"):
        assert subprocess.run(["nbdinfo", refused], capture_output=True, check=False).returncode != 0


def test_a_hold_of_a_host_that_is_lost_ends_from_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(holding.socket, "gethostname", lambda: "kvm9")
        holding.hold(world.repository(), world.points[0], "export rehearsal")
    retained = run_module(world.folder, "cbt_retention", **world.options, keep_last=1, grace=0)
    assert world.points[0].id in {each["id"] for each in retained["kept"]}
    assert not world.end("rehearsal")["changed"], "there is none on this host"
    assert world.holds() == ["export rehearsal"]
    assert world.end("rehearsal", host="kvm9")["removed"] == ["rehearsal"]
    assert world.holds() == []


def test_nights_pass_beside_a_client_that_reads(world: World) -> None:
    """Retention and compaction, in a loop, each in a process of its own."""
    point = world.points[0]
    uri, content = uris(world.run(restore_point=point.id))["vda"], world.raw(point)["vda"]
    for seed in range(4, 7):
        published(world.repository(), seed)
        client = subprocess.Popen(["nbdcopy", uri, world.folder / f"copy{seed}"])
        night = run_module(
            world.folder, "cbt_retention", **world.options, keep_last=1, grace=0, compact_below=100, confirm_shrink=True
        )
        assert not night.get("failed"), night
        assert client.wait(timeout=120) == 0
        assert (world.folder / f"copy{seed}").read_bytes() == content
    assert {each.id for each in world.repository().points_of().points} >= {point.id}


def test_a_play_begins_and_ends_an_export(world: World, collections: Path, tmp_path: Path) -> None:
    """Ansible deletes the code of a task, and the server goes on without it."""
    play, inventory = tmp_path / "play.yml", tmp_path / "inventory"
    inventory.write_text("testhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n")
    options = {**world.options, "domain": "web1", "name": "played", "socket_dir": str(world.sockets)}
    world._begun.add("played")

    def run(*tasks: dict[str, Any]) -> None:
        play.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": list(tasks)}]))
        done = run_playbook(["-i", inventory, play], collections, tmp_path)
        assert done.returncode == 0 and "WARNING" not in done.stdout, done.stdout

    run({"name": "Serve", "kvm.cbt.cbt_export": options})
    (listed,) = world.listed()
    content = world.raw(world.points[-1])["vda"]
    kill_answering(listed["exports"][0]["pid"])
    assert read(uris(listed)["vda"]) == content
    run({"name": "End", "kvm.cbt.cbt_export": {**world.options, "name": "played", "state": "absent"}})
    assert world.listed() == []
