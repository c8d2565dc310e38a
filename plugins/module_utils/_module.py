# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything Ansible: argument specs, missing libraries, signals, errors and results."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib
import signal
import time
import traceback
import typing as t
from xml.etree import ElementTree

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ._cbt.control import Interrupt
from ._cbt.errors import CbtError
from ._cbt.hypervisor.connection import Session, connect
from ._cbt.hypervisor.disks import Bitmap, Disk, Selection
from ._cbt.printable import printable
from ._cbt.repository.format.manifests import RestorePoint
from ._cbt.repository.location import Place
from ._cbt.repository.memory.memory import Memory, Terms
from ._cbt.repository.repository import Repository, Watching, find_repository, open_or_create, open_repository
from ._cbt.repository.sharing.leases import Session as WritingSession
from ._cbt.repository.stores.s3_options import S3_SCHEME, S3Options
from ._options import Options

# Must be kept in sync with the doc fragments of the same names.
LIBVIRT: dict[str, t.Any] = {
    "uri": {"type": "str", "default": "qemu:///system"},
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "authfile": {"type": "path"},
}
DISKS: dict[str, t.Any] = {
    "include_disks": {"type": "list", "elements": "str"},
    "exclude_disks": {"type": "list", "elements": "str", "default": []},
}
_S3: dict[str, t.Any] = {
    "endpoint_url": {"type": "str"},
    "region": {"type": "str"},
    "profile": {"type": "str"},
    "access_key": {"type": "str", "no_log": False},
    "secret_key": {"type": "str", "no_log": True},
    "validate_certs": {"type": "bool", "default": True},
    "ca_bundle": {"type": "path"},
}
# A path's expansion of ~ and variables leaves s3://bucket/prefix as it is.
ANY_REPOSITORY: dict[str, t.Any] = {
    "repository": {"type": "path"},
    "s3": {"type": "dict", "options": _S3, "required_together": [("access_key", "secret_key")]},
    "passphrase": {"type": "str", "no_log": True},
    "accept_repository": {"type": "bool", "default": False},
}
DEST: dict[str, t.Any] = {f"dest_{key}": option for key, option in ANY_REPOSITORY.items()}
REPOSITORY: dict[str, t.Any] = {**ANY_REPOSITORY, "repository": {"type": "path", "required": True}}
CREATE_REPOSITORY: dict[str, t.Any] = {"create_repository": {"type": "bool", "default": False}}
WORKERS: dict[str, t.Any] = {"workers": {"type": "int"}}
STORING: dict[str, t.Any] = {
    "compression": {"type": "str", "choices": ["lz4", "zstd", "zlib", "none"], "default": "lz4"},
    "compression_level": {"type": "int"},
    "dedup": {"type": "str", "choices": ["repository", "domain", "none"], "default": "repository"},
    "rate_limit": {"type": "bytes"},
}
DOMAIN: dict[str, t.Any] = {"domain": {"type": "str", "required": True, "aliases": ["name", "guest"]}}
ANY_DOMAIN: dict[str, t.Any] = {"domain": {"type": "str", "aliases": ["name", "guest"]}}
QUERY: dict[str, t.Any] = {"query": {"type": "str"}}

_PACKAGES = {
    "libvirt": "libvirt-python",
    "libvirt_qemu": "libvirt-python",
    "nbd": "libnbd",
    "lz4.block": "lz4",
    "jmespath": "jmespath",
    "boto3": "boto3",
}
_HINT = (
    "Install it from the distribution's packages (python3-libvirt, python3-libnbd, python3-lz4, python3-jmespath,"
    " python3-boto3). The package nbd on PyPI is a different library."
)


class Module(AnsibleModule):  # type: ignore[misc]
    """A module that shows no secret, not even one in an option that is misspelled or has the wrong shape."""

    params: dict[str, t.Any]

    def __init__(self, **specification: t.Any) -> None:
        self._flaws: list[str] = []
        super().__init__(**specification)
        if self._flaws:
            self.fail_json(msg=" ".join(self._flaws))

    def fail_json(self, msg: str, **result: t.Any) -> t.Any:
        """Fail with a message that a terminal may show. Does not return."""
        return super().fail_json(msg=printable(msg), **result)

    def warn(self, warning: str, **details: t.Any) -> None:
        """Warn with a text that a terminal may show."""
        super().warn(printable(warning), **details)

    def _load_params(self) -> None:
        super()._load_params()
        options = Options(self.argument_spec, self.params)
        self.params, self._flaws = options.given, options.flaws
        self.no_log_values.update(options.secrets)


def require(module: AnsibleModule, *libraries: str) -> None:
    """Fail with what to install if one of the Python libraries is missing on this host."""
    for library in libraries:
        try:
            importlib.import_module(library)
        except ImportError:
            module.fail_json(
                msg=f"{missing_required_lib(_PACKAGES[library])} {_HINT}", exception=traceback.format_exc()
            )


@contextlib.contextmanager
def reported(module: AnsibleModule) -> t.Iterator[None]:
    """Turn the engine's errors inside the block into a failed task. This is the one place where that happens."""
    try:
        yield
    except CbtError as error:
        module.fail_json(msg=str(error))


def interruptible() -> Interrupt:
    """An interrupt that TERM, INT and HUP request, so that an ended task undoes what it began."""
    interrupt = Interrupt()

    def note(number: int, _frame: t.Any) -> None:
        interrupt.request(signal.Signals(number).name)

    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, note)
    return interrupt


def session(module: AnsibleModule) -> t.ContextManager[Session]:
    """The libvirt session the module's options ask for."""
    params = module.params
    return connect(params["uri"], params["username"], params["password"], params["authfile"])


def selection(module: AnsibleModule) -> Selection:
    """The disks the module's options ask for."""
    include = module.params["include_disks"]
    return Selection(None if include is None else tuple(include), tuple(module.params["exclude_disks"]))


def place(module: AnsibleModule, which: str = "") -> Place:
    """Where the module's options say its repository is; with ``which`` the options whose names begin so."""
    params = module.params
    location: str = params[f"{which}repository"]
    if location.startswith(S3_SCHEME):
        require(module, "boto3")
    return Place(location, S3Options(**(params[f"{which}s3"] or {})), params[f"{which}passphrase"])


def watching(module: AnsibleModule, which: str = "") -> Watching:
    """What compares the repository with what this host knows of it, and keeps what is new unless in check mode."""
    option = f"{which}accept_repository"
    return functools.partial(Memory, terms=Terms(module.params[option], not module.check_mode, option, module.warn))


def repository_or_none(module: AnsibleModule, which: str = "") -> Repository | None:
    """The module's repository, created if the options say so; None in check mode if it would be."""
    if module.params["create_repository"]:
        return open_or_create(place(module, which), module.check_mode, watching(module, which))
    return existing_repository(module, which)


def repository_if_any(module: AnsibleModule) -> Repository | None:
    """The module's repository, None if there is none yet."""
    return find_repository(place(module), watching(module))


def existing_repository(module: AnsibleModule, which: str = "") -> Repository:
    """The module's repository, which must exist."""
    return open_repository(place(module, which), watching(module, which))


def session_if_installed(module: AnsibleModule) -> t.ContextManager[Session | None]:
    """The libvirt session the module's options ask for, or None where libvirt's Python module is not installed."""
    try:
        importlib.import_module("libvirt")
    except ImportError:
        return contextlib.nullcontext()
    return session(module)


def without_secrets(domain_xml: str) -> str:
    """A domain's XML as it may be shown: without the passwords of its graphics and the cookies of its disks."""
    root = ElementTree.fromstring(domain_xml)
    for element in root.iterfind("./devices/graphics"):
        element.attrib.pop("passwd", None)
    for source in root.iterfind(".//cookies/.."):
        source.remove(t.cast("ElementTree.Element", source.find("cookies")))
    return ElementTree.tostring(root, encoding="unicode")


def reduced(module: AnsibleModule, result: t.Any) -> t.Any:
    """The result, or what the option ``query`` picks of it."""
    query = module.params["query"]
    if query is None:
        return result
    require(module, "jmespath")
    jmespath = importlib.import_module("jmespath")
    try:
        return jmespath.search(query, result)
    except jmespath.exceptions.JMESPathError as error:
        return module.fail_json(msg=f"The query {query} cannot be read: {error}")


def point_summary(point: RestorePoint) -> dict[str, t.Any]:
    """A restore point as modules return it."""
    keys = ("id", "domain", "uuid", "created", "parent", "checkpoint", "consistency")
    return {key: getattr(point, key) for key in keys}


def point_details(point: RestorePoint) -> dict[str, t.Any]:
    """A restore point as the info module returns it."""
    disks = [
        {"target": disk.target, "virtual_size": disk.size, "mode": disk.mode, "reason": disk.reason, **disk.statistics}
        for disk in point.disks
    ]
    return {
        **point_summary(point),
        "disks": disks,
        "tags": dict(point.tags),
        "pinned": point.pinned,
        "host": point.host,
    }


def session_details(writing: WritingSession) -> dict[str, t.Any]:
    """Who is at work on a repository, as modules return it."""
    since = datetime.datetime.fromtimestamp(int(writing.since), datetime.timezone.utc).isoformat()
    # The store's own clock cannot be asked without writing; this one is near enough for a person.
    return {
        "host": writing.host,
        "process": writing.process,
        "operation": writing.operation,
        "since": since,
        "lapsed": writing.lapsed(time.time()),
    }


def disk_details(disk: Disk) -> dict[str, t.Any]:
    """A domain's disk as modules return it."""
    return {
        "target": disk.target,
        "source": disk.source,
        "type": disk.type,
        "device": disk.device,
        "format": disk.format,
        "compat": disk.compat,
        "virtual_size": disk.virtual_size,
        "tracked": disk.untrackable is None and any(bitmap.recording for bitmap in disk.bitmaps),
        "reason": disk.untrackable,
        "bitmaps": [bitmap_details(bitmap) for bitmap in disk.bitmaps],
    }


def bitmap_details(bitmap: Bitmap) -> dict[str, t.Any]:
    """A bitmap as modules return it."""
    fields = dataclasses.asdict(bitmap)
    return {key: fields[key] for key in ("name", "granularity", "dirty_bytes", "inconsistent")}
