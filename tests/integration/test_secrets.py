# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No secret that any module takes is in arguments, environments, logs, results or objects: the modules and their secrets are found, not listed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from lab.object_store import Rclone
from module_process import ModuleProcess, collection_path
from plays import run_playbook

from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import open_repository
from _cbt.repository.stores.s3_options import S3Options

MIB = 1 << 20
MARK = b"what nobody may read in the repository. "
MODULES = Path(__file__).resolve().parents[2] / "plugins" / "modules"

# Has a module's process write down what it logs, as Ansible calls it.
_LOGGED = """
import sys, syslog
sys.modules["systemd"] = None
syslog.syslog = lambda *words: print(words, file=open({path!r}, "a"))
"""

# Prints, by module, the options that are not to be logged.
_SPECS = """
import importlib, json, sys
from ansible.module_utils import basic

def secrets(spec, place=()):
    for name, option in spec.items():
        if option.get("no_log"):
            yield ".".join((*place, name))
        yield from secrets(option.get("options") or {}, (*place, name))

class Told(Exception):
    pass

def tell(_module, argument_spec, **_rest):
    raise Told(argument_spec)

basic.AnsibleModule.__init__ = tell
found = {}
for name in sys.argv[1:]:
    try:
        getattr(importlib.import_module("ansible_collections.kvm.cbt.plugins.modules." + name), "main", lambda: None)()
    except Told as told:
        found[name] = list(secrets(told.args[0]))
print(json.dumps({name: options for name, options in found.items() if options}))
"""


# Runs modules with options that are wrong, one after another in one process, and prints what each printed and whether that was a failure.
_WRONG = """
import contextlib, importlib, io, json, sys
from ansible.module_utils import basic

basic._ANSIBLE_PROFILE = "legacy"
told = []
for name, options in json.load(sys.stdin):
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module("ansible_collections.kvm.cbt.plugins.modules." + name).main()
    told.append(printed.getvalue())
print(json.dumps(told))
"""
_SECRET = "S3CRET-0f-any-kind"
_NUMBER = 4815162342


def misshapen() -> list[t.Any]:
    """A secret in shapes that no text has."""
    return [
        [_SECRET],
        [[_SECRET]],
        {"a": _SECRET},
        {_SECRET: None},
        [{"a": _SECRET}],
        [_NUMBER],
        {"a": {"b": [_SECRET]}},
    ]


def misspelled(option: str) -> list[str]:
    """Names that somebody may take for an option's."""
    return [option[:-1], option + "s", option.upper(), option.replace("_", "-") + "-", option.replace("s", "z", 1)]


def wrong_containers(option: str) -> list[t.Any]:
    """What somebody may write for a dictionary with a secret."""
    texts = [
        _SECRET,
        f"{_SECRET}==",
        f"{option} {_SECRET}",
        f"{option}s={_SECRET}",
        f"a=b {_SECRET}",
        f'{{"{option}": "{_SECRET}"',
        f'["{_SECRET}"]',
        f"{option}: {_SECRET}",
    ]
    dictionaries = [{name: _SECRET} for name in misspelled(option)] + [{option: each} for each in misshapen()]
    return [*texts, *dictionaries, *misshapen(), _NUMBER, [{option: _SECRET}, _SECRET]]


def wrong_options(specs: t.Mapping[str, set[str]]) -> t.Iterator[tuple[str, dict[str, t.Any]]]:
    """Each module with each of its secrets given wrong in each way, all others given right."""
    for module, options in specs.items():
        right: dict[str, t.Any] = {}
        for each in options:
            name, _dot, inner = each.partition(".")
            right[name] = {inner: f"{_SECRET}-{each}", "access_key": "a"} if inner else f"{_SECRET}-{each}"
        base = {"repository": "/nonexistent/repository", "_ansible_diff": True, "_ansible_verbosity": 4, **right}
        for each in options:
            name, _dot, inner = each.partition(".")
            rest = {key: value for key, value in base.items() if key != name}
            for wrong in wrong_containers(inner) if inner else misshapen():
                yield module, {**rest, name: wrong}
            for other in misspelled(name):
                yield module, {**rest, other: base[name]}
        for plain in ("repository", "domain", "workers"):
            for wrong in misshapen():
                yield module, {**base, plain: wrong}


def test_no_secret_is_shown_where_an_option_is_misspelled_or_has_the_wrong_shape(tmp_path: Path) -> None:
    cases = list(wrong_options(secret_options(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": str(collection_path(tmp_path))}
    run = subprocess.run(
        [sys.executable, "-c", _WRONG],
        input=json.dumps(cases),
        text=True,
        check=True,
        capture_output=True,
        env=environment,
    )
    told = json.loads(run.stdout)
    assert len(told) == len(cases) > 500
    assert [case for case, text in zip(cases, told) if not json.loads(text).get("failed")] == []
    assert [(case, text) for case, text in zip(cases, told) if _SECRET in text or str(_NUMBER) in text] == []
    assert all('"invocation"' in text for text in told), "what is hidden is looked for in what Ansible shows at -vvv"
    assert _SECRET not in run.stderr and "Traceback" not in run.stderr


def test_ansible_itself_shows_no_secret_of_wrong_options_at_its_most_verbose(collections: Path, tmp_path: Path) -> None:
    # By variables: ansible-core quotes the lines of a play beside an error.
    values = {"repository": "/nonexistent/repository", "passphrase": "{{ secret }}"}
    run, item = {"module": "kvm.cbt.cbt_verify"}, [{"label": "one"}]
    wrong: list[tuple[str, dict[str, t.Any]]] = [
        ("cbt_verify", {**values, "s3": "{{ secret }}"}),
        ("cbt_verify", {"repository": "/nonexistent/repository", "passphrase": ["{{ secret }}"]}),
        ("cbt_verify", {"repository": "/nonexistent/repository", "passphrse": "{{ secret }}"}),
        ("cbt_each", {**run, "options": values, "each": item, "passphrase": "{{ secret }}"}),
        ("cbt_each", {**run, "options": values, "each": [["{{ secret }}"]]}),
        ("cbt_each", {**run, "options": values, "each": ["{{ secret }}"]}),
        ("cbt_each", {**run, "options": ["{{ secret }}"], "each": item}),
        ("cbt_each", {**run, "options": {**values, "s3": "{{ secret }}"}, "each": item}),
        (
            "cbt_each",
            {**run, "options": values, "each": [{"label": "one", "options": {"passphrase": {"a": "{{ secret }}"}}}]},
        ),
    ]
    tasks = [{f"kvm.cbt.{module}": options, "ignore_errors": True} for module, options in wrong]
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    (tmp_path / "secret.json").write_text(json.dumps({"secret": _SECRET}))
    here = ["-i", "localhost,", "-c", "local", "-e", "ansible_python_interpreter=/usr/bin/python3"]
    words = ["-vvvvv", "--diff", *here, "-e", f"@{tmp_path}/secret.json", tmp_path / "play.yml"]
    shown = run_playbook(words, collections, tmp_path).stdout
    assert f"ignored={len(wrong)}" in shown, shown
    assert shown.count('"invocation"') >= 3, "the modules have run"
    assert [line for line in shown.splitlines() if _SECRET in line] == []


def secret_options(folder: Path) -> dict[str, set[str]]:
    """By module, the options that are secrets, those within others as ``s3.secret_key``."""
    names = [path.stem for path in MODULES.glob("*.py")]
    environment = {**os.environ, "PYTHONPATH": str(collection_path(folder))}
    printed = subprocess.run(
        [sys.executable, "-c", _SPECS, *names], check=True, stdout=subprocess.PIPE, env=environment
    ).stdout
    return {name: set(options) for name, options in json.loads(printed).items()}


class _Watch:
    """Looks for secrets in the command line and the environment of every process that is started, over and over."""

    def __init__(self, secret: t.Sequence[bytes]) -> None:
        self._secret = secret
        self._done = threading.Event()
        self._before = {path.name for path in Path("/proc").glob("[0-9]*")}  # the object store was told its secret so
        self.found: set[str] = set()
        self.programs: set[str] = set()

    def __enter__(self) -> _Watch:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            for folder in Path("/proc").glob("[0-9]*"):
                if folder.name in self._before:
                    continue
                with contextlib.suppress(OSError):  # ended meanwhile
                    words = (folder / "cmdline").read_bytes()
                    self.programs.add(Path(words.split(b"\0")[0].decode()).name)
                    text = words + (folder / "environ").read_bytes()
                    self.found.update(words.decode() for each in self._secret if each in text)


class _Runs:
    """Runs modules with all the secrets they take, and keeps what was told."""

    def __init__(self, folder: Path, specs: t.Mapping[str, set[str]], values: t.Mapping[str, t.Any]) -> None:
        self._folder, self._specs, self._values = folder, specs, values
        self.told: list[bytes] = []
        self.given: dict[str, set[str]] = {}

    def __call__(self, module: str, failed: bool = False, check: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
        taken = {option.partition(".")[0] for option in self._specs[module]}
        given = {**{name: value for name, value in self._values.items() if name in taken}, **arguments}
        if "password" in given:
            given["username"] = "operator"
        process = ModuleProcess(self._folder, module, given, check)
        out, err = process.process.communicate(timeout=300)
        self.told += [out, err]
        result: dict[str, t.Any] = json.loads(out)
        assert bool(result.get("failed")) == failed, result
        assert "exception" not in result
        self.given.setdefault(module, set()).update(
            option for option in self._specs[module] if option.partition(".")[0] in given
        )
        return result


@pytest.fixture
def server() -> t.Iterator[Rclone]:
    with Rclone() as server:
        yield server


def test_no_secret_of_any_module_is_in_arguments_logs_results_processes_and_objects(
    hypervisor: Hypervisor, workspace: Path, server: Rclone
) -> None:
    log = workspace / "log"
    (collection_path(workspace) / "sitecustomize.py").write_text(_LOGGED.format(path=str(log)))
    specs = secret_options(workspace)
    passphrase, new, dest, wrong, password = (secrets.token_hex(16) for _each in range(5))
    s3 = server.account.options
    here, there = ({"repository": f"s3://{server.account.bucket()}/kvm"} for _each in range(2))
    values = {"passphrase": passphrase, "s3": s3, "dest_passphrase": dest, "dest_s3": s3, "password": password}
    run = _Runs(workspace, specs, values)
    image = workspace / "any.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    (workspace / "restored").mkdir()
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB)]) as domain:
        domain.write_bytes("vda", 0, MARK * 5000)
        named = {"domain": domain.name}
        # What each module needs besides its secrets. Each is run with them, and with a wrong passphrase if it takes one.
        arguments: dict[str, dict[str, t.Any]] = {
            "cbt_repository": here,
            "cbt_backup": {**here, **named},
            "cbt_backup_info": here,
            "cbt_changed_blocks_info": {**here},
            "cbt_repository_info": here,
            "cbt_checkpoint": {**here, **named},
            "cbt_checkpoint_info": {**here, **named},
            "cbt_verify": {**here, "restore_points": ["all"]},
            "cbt_copy": {**here, "dest_repository": there["repository"], "create_repository": True},
            "cbt_restore": {**here, **named, "dest": str(workspace / "restored")},
            "cbt_restore_point": {**here, "restore_points": ["20260101T000000Z-00000000"], "state": "absent"},
            "cbt_retention": {**here, "keep_last": 1, "grace": 0, "compact_below": 50},
            "cbt_export": {**here, "name": "none", "state": "absent"},
            "cbt_image": {"path": str(image), "source_format": "qcow2"},
            "cbt_capability": {"domains": [domain.name]},
            "cbt_domain_info": {},
        }
        assert set(arguments) == set(specs), "a module that takes a secret is run here, and no other"
        secret = [passphrase, new, dest, wrong, password, s3["secret_key"]]
        with _Watch([each.encode() for each in secret]) as watch:
            for module, each in arguments.items():
                run(module, check=module == "cbt_backup", **each)
                if module == "cbt_backup":
                    first = run(module, **each)["restore_point"]["id"]
                    domain.write_bytes("vda", 4 * MIB, MARK * 5000)
                    second = run(module, **each)["restore_point"]["id"]
                    arguments["cbt_changed_blocks_info"].update({"from": first, "to": second, "disk": "vda"})
                    shown = run("cbt_changed_blocks_info", **arguments["cbt_changed_blocks_info"])["changed_blocks"]
                    assert shown == [{"offset": 4 * MIB, "length": 262144, "zero": False}]
            domain.destroy()
            run("cbt_backup", **arguments["cbt_backup"])
            for module in (each for each, options in specs.items() if "passphrase" in options):
                refused = run(module, failed=True, **{**arguments[module], "passphrase": wrong})
                assert "key slot of the repository" in refused["msg"]
            for module in ("cbt_backup_info", "cbt_copy"):
                refused = run(module, failed=True, **{**arguments[module], "s3": {**s3, "secret_key": wrong}})
                assert (
                    "Check access_key and secret_key" in refused["msg"] or "Check what the policies" in refused["msg"]
                ), refused
            run("cbt_repository", **here, new_passphrase=new)
            run("cbt_repository", failed=True, **here, new_passphrase=wrong)
        masters = _masters(server, (here, new), (there, dest))
    assert run.given == specs, "every secret of every module was given"
    assert watch.found == set()
    assert "qemu-storage-daemon" in watch.programs, "the watch has seen what the modules start"
    unseen = [*(each.encode() for each in secret), *(master.hex().encode() for master in masters), *masters]
    logged = log.read_bytes()
    assert logged.count(b"Invoked with") == len(run.told) // 2, "every module has logged"
    assert logged.count(b"NOT_LOGGING_PARAMETER") >= len(run.told) // 2
    assert [each for each in unseen if each in logged] == []
    assert [(text, each) for text in run.told for each in unseen if each in text] == []
    objects = [path for path in server.data.rglob("*") if path.is_file()]
    assert len(objects) > 10
    assert [
        (path, each)
        for path in objects
        for each in [*unseen, MARK, domain.name.encode(), b"<domain"]
        if each in path.read_bytes()
    ] == []


# What libvirt shows of a machine only to who may see its secrets.
_MACHINE = """<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><devices>
<disk type='network' device='cdrom'><source protocol='https' name='a'><host name='mirror'/><cookies><cookie name='a'>secret</cookie></cookies></source></disk>
<disk type='file'><backingStore><source protocol='https'><cookies><cookie name='a'>secret</cookie></cookies></source></backingStore></disk>
<graphics type='vnc' port='5999' passwd='secret'/><graphics type='spice' passwd='secret'/>
</devices><qemu:commandline/></domain>"""
_SHOWN = """
import sys
from ansible_collections.kvm.cbt.plugins.module_utils._cbt.operations.restore.result import RestoreResult
print(RestoreResult(None, (), sys.stdin.read(), None, 0.0, ()).shown_xml)
"""


def test_a_machine_is_shown_without_its_passwords_and_cookies(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(collection_path(tmp_path))}
    shown = subprocess.run(
        [sys.executable, "-c", _SHOWN], input=_MACHINE, text=True, check=True, stdout=subprocess.PIPE, env=environment
    ).stdout
    assert "secret" not in shown
    assert "mirror" in shown and "5999" in shown and "spice" in shown and "<qemu:commandline" in shown


def _masters(server: Rclone, *opened: tuple[dict[str, str], str]) -> list[bytes]:
    """The master keys of repositories with these passphrases."""
    places = [
        RepositoryLocation(where["repository"], S3Options(**server.account.options), passphrase)
        for where, passphrase in opened
    ]
    return [open_repository(place).keys._master for place in places]  # type: ignore[attr-defined]
