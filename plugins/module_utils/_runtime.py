# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connects a module to Ansible and to its host.

It handles options, libraries, signals and errors.

It imports nothing of a repository or of libvirt, because modules that need none start faster without them.
``_repository`` opens a repository, and ``_hypervisor`` a session of libvirt.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.common.parameters import remove_values

from . import _heartbeat
from ._cbt.control import Control
from ._cbt.errors import CbtError
from ._cbt.printable import printable
from ._options import DURATIONS, Options, seconds

__all__ = ["Failure", "Module", "interruptible", "reported", "require"]

_PACKAGES = {
    "libvirt": "libvirt-python",
    "libvirt_qemu": "libvirt-python",
    "nbd": "libnbd",
    "lz4.block": "lz4",
    "jmespath": "jmespath",
}
_HINT = (
    "Install it from the distribution's packages (python3-libvirt, python3-libnbd, python3-lz4, python3-jmespath)."
    " The package nbd on PyPI is a different library."
)


class Failure(CbtError):
    """A failure of the task with a result, which the module returns with the message."""

    def __init__(self, message: str, result: t.Mapping[str, t.Any]) -> None:
        super().__init__(message)
        self.result = result


class Module(AnsibleModule):  # type: ignore[misc]
    """A module that shows no secret, not even one in an option that is misspelled or has the wrong shape."""

    params: dict[str, t.Any]

    def __init__(self, **specification: t.Any) -> None:
        self._flaws: list[str] = []
        self.control = Control()
        super().__init__(**specification)
        with reported(self):
            if self._flaws:
                raise CbtError(" ".join(self._flaws))
            self._begin_log()
            for name in DURATIONS & self.params.keys():
                self._read_duration(name)

    def _read_duration(self, name: str) -> None:
        try:
            self.params[name] = seconds(self.params[name])
        except ValueError as error:
            raise CbtError(f"{name}: {error}") from None

    def _begin_log(self) -> None:
        """Open the log that the options ask for."""
        if not self.params.get("log_path"):
            return
        from ._cbt.log import Log  # only then: most tasks write none

        log = Log(self.params["log_path"], self._name.rpartition(".")[2], self._without_secrets, super().warn)
        self.control = Control(log.progress, log.event)
        shown = {key: self.params[key] for key in ("domain", "repository", "dest_repository") if self.params.get(key)}
        self.control.note("started", **shown, check_mode=self.check_mode)

    def _without_secrets(self, text: str) -> str:
        return t.cast(str, remove_values(text, self.no_log_values))

    def exit_json(self, **result: t.Any) -> t.Any:
        """Return the result. Does not return."""
        for action in result.get("actions", ()):
            self.control.note("planned" if self.check_mode else "done", action=action)
        self.control.note("succeeded", changed=result.get("changed", False))
        return super().exit_json(**result)

    def fail_json(self, msg: str, **result: t.Any) -> t.Any:
        """Fail with a message that a terminal may show. Does not return."""
        self.control.warn("failed", error=msg)
        return super().fail_json(msg=printable(msg), **result)

    def warn(self, warning: str, **details: t.Any) -> None:
        """Warn with a text that a terminal may show."""
        self.control.warn("warning", text=warning)
        super().warn(printable(warning), **details)

    def _load_params(self) -> None:
        super()._load_params()
        options = Options(self.argument_spec, self.params)
        self.params, self._flaws = options.given, options.flaws
        for names in self.mutually_exclusive or ():
            self._settle(names)
        self.no_log_values.update(options.secrets)

    def _settle(self, names: t.Iterable[str]) -> None:
        """Of options that exclude one another, drop given defaults, and take one at most from the environment.

        An option that is given wins over the environment.
        """
        spec = {name: self.argument_spec[name] for name in names}
        given = {each: name for name in spec for each in (name, *spec[name].get("aliases", ())) if each in self.params}
        for each, name in list(given.items()):
            # The default, although it is given, excludes no other option, and neither does an empty string.
            if self.params[each] == spec[name].get("default") or self.params[each] == "" and len(given) > 1:
                del self.params[each], given[each]
        chosen = bool(given)
        for name, option in spec.items():
            if "fallback" not in option:
                continue
            variables = option["fallback"][1]
            if chosen:
                self.argument_spec[name] = {key: value for key, value in option.items() if key != "fallback"}
            chosen = chosen or any(os.environ.get(variable) for variable in variables)


def require(module: Module, *libraries: str) -> None:
    """Fail with installation advice if one of the Python libraries is missing."""
    with reported(module):
        for library in libraries:
            try:
                importlib.import_module(library)
            except ImportError as error:
                raise CbtError(f"{missing_required_lib(_PACKAGES[library])} {_HINT}") from error


@contextlib.contextmanager
def reported(module: Module) -> t.Iterator[None]:
    """Turn a CbtError inside the block into a failed task. Log other exceptions."""
    try:
        yield
    except CbtError as error:
        module.fail_json(msg=str(error), **(error.result if isinstance(error, Failure) else {}))
    except Exception as error:
        module.control.warn("failed", error=f"{type(error).__name__}: {error}")
        raise


def interruptible(module: Module) -> Control:
    """Return the module's control, and have TERM, INT, HUP and the loss of the controller ask it to stop.

    An interrupted task then undoes unfinished work.
    """
    control = module.control

    def note(number: int, _frame: t.Any) -> None:
        control.request(signal.Signals(number).name)

    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, note)
    _heartbeat.watch(control.request, module.warn)
    return control
