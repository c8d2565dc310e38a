# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that modules share, and how to hide values of the wrong shape.

Ansible hides the value of a secret option only if the option's name is right and all options have the right shape.
Therefore this module replaces values that do not fit the specification, and finds secrets, before Ansible reads them.
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible.module_utils.common.validation import check_type_dict
from ansible.module_utils.errors import AnsibleFallbackNotFound

# Time spans. ``seconds`` reads them.
DURATIONS = frozenset({"freeze_timeout", "grace", "lock_timeout", "shutdown_timeout", "thaw_timeout", "timeout"})
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

HIDDEN = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"

Spec = t.Mapping[str, t.Mapping[str, t.Any]]
_CONTAINERS = ("dict", "list", "raw", "json", "jsonarg")


def seconds(duration: str) -> int:
    """Return a duration, such as ``90``, ``15m``, ``24h`` or ``7d``, in seconds. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,9}) ?([smhd]?)", duration.strip(), re.ASCII)
    if found is None:
        raise ValueError(
            f"{duration!r} is not a duration. Write a number of seconds, or a number with its unit: 90, 15m, 24h or 7d."
        )
    return int(found[1]) * _UNITS[found[2]]


def environment(name: str) -> str:
    """Return a variable of the environment, for an option that is not given. An empty variable counts as unset."""
    if not os.environ.get(name):
        raise AnsibleFallbackNotFound
    return os.environ[name]


def _or_environment(name: str, option: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {**option, "fallback": (environment, [name])}


# Must be kept in sync with the doc fragments of the same names.
LIBVIRT: dict[str, t.Any] = {
    "uri": _or_environment("LIBVIRT_DEFAULT_URI", {"type": "str", "default": "qemu:///system"}),
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "authfile": {"type": "path"},
}
LOCK: dict[str, t.Any] = {"lock_timeout": {"type": "str", "default": "0"}}
DISKS: dict[str, t.Any] = {
    "include_disks": {"type": "list", "elements": "str"},
    "exclude_disks": {"type": "list", "elements": "str", "default": []},
}
OTHER_HOSTS: dict[str, t.Any] = {
    "offline_confirmed": {"type": "bool", "default": False},
    "silent_hosts": {"type": "list", "elements": "str", "default": []},
    "answered_hosts": {"type": "list", "elements": "str", "default": []},
}
_S3: dict[str, t.Any] = {
    "endpoint_url": {"type": "str"},
    "region": {"type": "str"},
    "profile": {"type": "str"},
    "access_key": {"type": "str", "no_log": False},
    "secret_key": {"type": "str", "no_log": True},
    "validate_certs": {"type": "bool", "default": True},
    "ca_bundle": {"type": "path"},
    "addressing_style": {"type": "str", "choices": ["auto", "path", "virtual"]},
    "server_side_encryption": {"type": "str", "choices": ["AES256", "aws:kms", "aws:kms:dsse"]},
    "kms_key_id": {"type": "str", "no_log": False},
}
_PASSPHRASE: dict[str, t.Any] = {
    "passphrase": {"type": "str", "no_log": True},
    "passphrase_file": {"type": "path", "no_log": False},
    "passphrase_command": {"type": "str", "no_log": False},
}
# The path type expands ~ and variables, and leaves s3://bucket/prefix unchanged.
_ANY_REPOSITORY: dict[str, t.Any] = {
    "repository": {"type": "path", "required": True},
    "s3": {"type": "dict", "options": _S3, "required_together": [("access_key", "secret_key")]},
    **_PASSPHRASE,
    "accept_repository": {"type": "bool", "default": False},
}
REPOSITORY: dict[str, t.Any] = {
    **_ANY_REPOSITORY,
    "repository": _or_environment("CBT_REPOSITORY", _ANY_REPOSITORY["repository"]),
    "passphrase": _or_environment("CBT_PASSPHRASE", _PASSPHRASE["passphrase"]),
    "passphrase_file": _or_environment("CBT_PASSPHRASE_FILE", _PASSPHRASE["passphrase_file"]),
}
ANY_REPOSITORY: dict[str, t.Any] = {**REPOSITORY, "repository": {"type": "path"}}
DEST: dict[str, t.Any] = {f"dest_{key}": option for key, option in _ANY_REPOSITORY.items()}
NEW_PASSPHRASE: dict[str, t.Any] = {f"new_{key}": option for key, option in _PASSPHRASE.items()}
# Each of these is for mutually_exclusive.
ONE_PASSPHRASE = tuple(_PASSPHRASE)
ONE_DEST_PASSPHRASE = tuple(f"dest_{key}" for key in _PASSPHRASE)
ONE_NEW_PASSPHRASE = tuple(NEW_PASSPHRASE)
CREATE_REPOSITORY: dict[str, t.Any] = {"create_repository": {"type": "bool", "default": False}}
WORKERS: dict[str, t.Any] = {"workers": {"type": "int"}}
STORING: dict[str, t.Any] = {
    "compression": {"type": "str", "choices": ["lz4", "zstd", "zlib", "none"]},
    "compression_level": {"type": "int"},
    "dedup": {"type": "str", "choices": ["repository", "domain", "none"], "default": "repository"},
    "rate_limit": {"type": "bytes"},
}
DOMAIN: dict[str, t.Any] = {"domain": {"type": "str", "required": True, "aliases": ["name", "guest"]}}
ANY_DOMAIN: dict[str, t.Any] = {"domain": {"type": "str", "aliases": ["name", "guest"]}}
LOG: dict[str, t.Any] = {"log_path": _or_environment("CBT_LOG_PATH", {"type": "path"})}
QUERY: dict[str, t.Any] = {"query": {"type": "str"}}


class Options:
    """Options that Ansible may read: ``given``, without values to hide.

    ``secrets`` must be hidden wherever they appear. ``flaws`` are messages on options that Ansible would accept in a
    wrong shape.
    """

    def __init__(self, spec: Spec, given: t.Mapping[str, t.Any]) -> None:
        self.flaws: list[str] = []
        self.secrets: set[str] = set()
        self.given = self._options(spec, given)

    def _options(self, spec: Spec, given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        known = {each: option for name, option in spec.items() for each in (name, *option.get("aliases", ()))}
        shown = {}
        for name, value in given.items():
            if name in known:
                shown[name] = self._value(name, known[name], value)
            elif str(name).startswith("_ansible_"):
                shown[name] = value
            else:
                shown[HIDDEN if value is None else name] = HIDDEN  # a name without a value may be the secret itself
        return shown

    def _value(self, name: str, option: t.Mapping[str, t.Any], value: t.Any) -> t.Any:
        kind = option.get("type", "str")
        if value is None:
            return None
        if kind == "list":
            return self._list(name, option, value)
        if "options" in option:
            return self._suboptions(option["options"], value)
        if kind == "dict":
            return value if _mapping(value) is not None else HIDDEN
        if (
            isinstance(value, (t.Mapping, list))
            and kind not in _CONTAINERS
            or isinstance(value, bool)
            and option.get("no_log")
        ):
            self.flaws.append(
                f"{name} is of type {type(value).__name__}, and must be of type {kind}. Write it in quotes."
            )
            return HIDDEN
        if option.get("no_log") and value != "":
            self.secrets.add(str(value))
        return value

    def _list(self, name: str, option: t.Mapping[str, t.Any], value: t.Any) -> t.Any:
        element = {**option, "type": option.get("elements", "raw")}
        if isinstance(value, list):
            return [self._value(name, element, each) for each in value]
        return HIDDEN if "options" in option or isinstance(value, t.Mapping) else value

    def _suboptions(self, spec: Spec, value: t.Any) -> t.Any:
        mapping = _mapping(value)
        if mapping is None or isinstance(value, str) and not set(mapping) <= set(spec):
            return HIDDEN  # parts of a string may become option names, which errors show
        return self._options(spec, mapping)


def _mapping(value: t.Any) -> t.Mapping[str, t.Any] | None:
    """Return the value as a mapping, by Ansible's rules; None if it is none."""
    try:
        return t.cast("t.Mapping[str, t.Any]", check_type_dict(value))
    except (TypeError, ValueError):
        return None
