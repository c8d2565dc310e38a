# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a module of this collection several times in parallel on each host. See the module of the same name."""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.kvm.cbt.plugins.module_utils._cbt.printable import printable
from ansible_collections.kvm.cbt.plugins.module_utils._options import LIBVIRT, Options, seconds
from ansible_collections.kvm.cbt.plugins.plugin_utils import _cluster
from ansible_collections.kvm.cbt.plugins.plugin_utils._delegated import run_on
from ansible_collections.kvm.cbt.plugins.plugin_utils._heartbeats import heartbeats
from ansible_collections.kvm.cbt.plugins.plugin_utils._outcomes import described, warning_text

_SPEC: dict[str, t.Any] = {
    "module": {"type": "str", "required": True},
    "options": {"type": "dict", "default": {}},
    "each": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "label": {"type": "str", "required": True},
            "options": {"type": "dict", "default": {}},
            "running": {"type": "bool", "default": False},
        },
    },
    "cluster": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "host": {"type": "str", "required": True},
            "uri": {"type": "str", "default": "qemu:///system"},
            "username": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "authfile": {"type": "str"},
        },
    },
    "parallel": {"type": "int", "default": 1},
    "timeout": {"type": "str", "default": "24h"},
    "fail_on_error": {"type": "bool", "default": True},
}
_POLL = (0.5, 15.0)  # shortest and longest seconds between two polls, growing while no run ends
_DISTURBED = (1, 5)  # seconds to wait before polling a host again that did not respond
_REPORT = 60  # seconds within which a host must report of a domain
_GRACE = 60  # seconds to wait for the result of a run that was killed at its time limit
_LISTER = "kvm.cbt.cbt_domain_info"
_ANSIBLE = frozenset(
    {
        "ansible_job_id",
        "finished",
        "started",
        "invocation",
        "results_file",
        "stdout",
        "stdout_lines",
        "stderr",
        "stderr_lines",
    }
)

Result = dict[str, t.Any]


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs a module for each item, a limited number at a time."""

    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: Result | None = None) -> Result:
        """Start a run for each item as slots become free, and collect the results."""
        result: Result = super().run(tmp, task_vars)
        options = Options(_SPEC, self._task.args)
        if options.flaws:
            return {**result, "failed": True, "msg": " ".join(options.flaws)}
        self._task.args = options.given
        _validated, self._options = self.validate_argument_spec(_SPEC)
        if self._options["parallel"] < 1:
            return {**result, "failed": True, "msg": f"parallel is {self._options['parallel']}; it must be 1 or more."}
        try:
            self._options["timeout"] = seconds(self._options["timeout"])
        except ValueError as error:
            return {**result, "failed": True, "msg": f"timeout: {error}"}
        self._task_vars = task_vars or {}
        self._outcomes: list[Result] = []
        self._waiting = list(self._options["each"])
        self._running: dict[str, tuple[Result, float]] = {}  # item and deadline by job id
        self._warnings: list[str] = []
        self._silent: dict[str, _cluster.Report] = {}  # a host that did not report once is not queried again
        try:
            with heartbeats(self):
                self._run_all()
        except AnsibleConnectionFailure as error:
            self._give_up("the host was lost")
            return {
                **result,
                **self._result(),
                "failed": False,
                "unreachable": True,
                "msg": f"The host was lost: {error}",
            }
        except (
            AnsibleError,
            OSError,
        ) as error:  # a host that is shutting down may fail in other ways; still return the results so far
            self._give_up(f"the host failed: {error}")
        return {**result, **self._result()}

    def cleanup(self, force: bool = False) -> None:
        """Remove temporary files. If the host is lost, return the outcomes rather than that error."""
        with contextlib.suppress(AnsibleConnectionFailure):
            super().cleanup(force)

    def _run_all(self) -> None:
        pause = _POLL[0]
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._options["parallel"]:
                self._take(self._waiting[0])
                del self._waiting[0]  # only once it has started, so that it is reported if the host is lost
            if not self._running:
                continue
            time.sleep(pause)
            ended = [self._look_at(job) for job in list(self._running)]
            pause = _POLL[0] if any(ended) else min(pause * 2, _POLL[1])

    def _take(self, item: Result) -> None:
        """Start a run, unless another host of the cluster has the domain."""
        if not self._options["cluster"]:
            self._start(item, {})
            return
        turn = self._turn(item["options"].get("domain", item["label"]))
        if turn.not_here is None:
            self._start(item, turn.options)
        elif item["running"]:
            text = (
                f"not processed: it was active on this host when the play began, and {turn.not_here} now. Run the"
                " playbook again"
            )
            self._note(item, True, text, {"msg": text})
        else:
            self._note(item, False, f"skipped: {turn.not_here}", {"skipped": turn.not_here})

    def _turn(self, domain: str) -> _cluster.Turn:
        hosts = {each["host"]: each for each in self._options["cluster"]}
        here = self._task_vars["inventory_hostname"]
        own = self._report(here, self._options["options"], domain)
        others = [each for each in hosts if each != here and _cluster.needs_others(own)]
        order = list(dict.fromkeys([*hosts, here]))
        return _cluster.turn(own, [self._report(each, hosts[each], domain) for each in others], order)

    def _report(self, host: str, connection: Result, domain: str) -> _cluster.Report:
        """Query a host for a domain."""
        if host in self._silent:
            return self._silent[host]
        asked = {"domains": [domain], "details": False}
        arguments = {**self._given({key: connection.get(key) for key in LIBVIRT}), **asked}
        if host == self._task_vars["inventory_hostname"]:
            result = self._execute_module(_LISTER, arguments, task_vars=self._task_vars)
            return _cluster.report_of(host, result)
        report = _cluster.report_of(host, run_on(host, self, _LISTER, arguments, (self._task_vars, _REPORT)))
        if report.silent is not None:
            self._silent[host] = report
            self._warnings.append(printable(f"{host} did not report which domains it runs: {report.silent}"))
        return report

    def _given(self, options: Result) -> Result:
        """The options without omitted ones. ansible-core before 2.19 does not remove these below the top level."""
        omit = self._task_vars.get("omit")
        return {key: value for key, value in options.items() if value is not None and value != omit}

    def _start(self, item: Result, found: t.Mapping[str, t.Any]) -> None:
        arguments = self._given({**self._options["options"], **found, **item["options"]})
        self._task.async_val = self._options["timeout"]  # async_wrapper reads its limit from here
        try:
            started = self._execute_module(
                self._options["module"], arguments, task_vars=self._task_vars, wrap_async=True
            )
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as error:
            started = {"failed": True, "msg": str(error)}
        finally:
            self._task.async_val = 0
        if "ansible_job_id" in started:
            self._running[started["ansible_job_id"]] = (item, time.monotonic() + self._options["timeout"] + _GRACE)
        else:
            self._ended(item, started)

    def _look_at(self, job: str) -> bool:
        item, limit = self._running[job]
        found = self._patiently(job)
        if not found.get("finished"):
            if time.monotonic() < limit:
                return False
            found = {"failed": True, "msg": f"no result within {self._options['timeout']} s"}
        self._ended(item, found)
        del self._running[job]
        self._job(job, "cleanup")
        return True

    def _patiently(self, job: str) -> Result:
        """Return the state of a job. Retries after short network failures."""
        for pause in _DISTURBED:
            try:
                return self._job(job, "status")
            except AnsibleConnectionFailure:
                time.sleep(pause)
        return self._job(job, "status")

    def _job(self, job: str, mode: str) -> Result:
        where = self.get_shell_option("async_dir", default="~/.ansible_async")
        found: Result = self._execute_module(
            "ansible.legacy.async_status", {"jid": job, "mode": mode, "_async_dir": where}, task_vars=self._task_vars
        )
        return found

    def _ended(self, item: Result, returned: Result) -> None:
        result = {key: value for key, value in returned.items() if key not in _ANSIBLE and not key.startswith("_")}
        self._warnings += [printable(warning_text(each)) for each in result.pop("warnings", [])]
        self._note(
            item, bool(returned.get("failed")), described(self._options["module"].rpartition(".")[2], returned), result
        )

    def _note(self, item: Result, failed: bool, text: str, result: Result) -> None:
        changed = bool(result.get("changed"))
        label, text = printable(item["label"]), printable(text)
        self._outcomes.append({"label": label, "failed": failed, "changed": changed, "text": text, "result": result})
        if not self._task.no_log:
            self._display.display(
                f"[{self._task_vars.get('inventory_hostname')}] {label}: {'FAILED: ' if failed else ''}{text}"
            )

    def _give_up(self, why: str) -> None:
        for item, _limit in self._running.values():
            self._note(item, True, f"unknown: {why} while it ran", {})
        for item in self._waiting:
            self._note(item, True, f"not started: {why}", {})

    def _result(self) -> Result:
        bad = [f"{outcome['label']}: {outcome['text']}" for outcome in self._outcomes if outcome["failed"]]
        result: Result = {"changed": any(outcome["changed"] for outcome in self._outcomes), "outcomes": self._outcomes}
        if self._warnings:
            result["warnings"] = self._warnings
        if bad and self._options["fail_on_error"]:
            result.update(failed=True, msg=f"{len(bad)} of {len(self._outcomes)} failed. {' '.join(bad)}")
        return result
