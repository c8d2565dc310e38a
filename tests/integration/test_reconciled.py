# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cbt_checkpoint with state: reconciled puts in order what is ours, and tells of what is not."""

from __future__ import annotations

import typing as t
from pathlib import Path

import libvirt
import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from lab.reference import pull_job_xml
from module_process import created, run_module

MIB = 1 << 20
METADATA_ONLY = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
THEIRS = "<domaincheckpoint><name>theirs</name></domaincheckpoint>"

either_way = pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])


def _shown(state: t.Any) -> dict[str, list[str]]:
    """The state of a domain as the diff shows it."""
    return {"checkpoints": state[0], "bitmaps": sorted({*state[1][0], *state[1][1]})}


class Reconciling:
    """A domain with two disks, one backup, and what is needed to bring disorder into it."""

    def __init__(self, hypervisor: Hypervisor, workspace: Path) -> None:
        self.workspace = workspace
        self.domain = BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB), DiskSpec("vdb", 4 * MIB)])
        created(workspace, workspace / "repository")
        self.serving = self.backup()

    def backup(self, repository: str = "repository", **options: t.Any) -> str:
        """Back up; returns the new checkpoint's name."""
        result = run_module(
            self.workspace,
            "cbt_backup",
            domain=self.domain.name,
            repository=str(self.workspace / repository),
            **options,
        )
        assert not result.get("failed"), result
        return str(result["restore_point"]["checkpoint"])

    def dangling(self) -> str:
        """Bitmaps and marks of ours that nothing knows of, as a run leaves them that is killed at the wrong moment."""
        name = f"{self.serving[:-8]}00000000"
        for target in ("vda", "vdb"):
            self.domain.qmp(
                "block-dirty-bitmap-add",
                node=self.node(target),
                name=f"{name}@{target}",
                persistent=True,
                disabled=True,
            )
        self.domain.handle.checkpointCreateXML(f"<domaincheckpoint><name>{name}</name></domaincheckpoint>", 0)
        self.forget(name)
        return name

    def dead(self) -> str:
        """A checkpoint of ours that libvirt knows and of which no bitmap is left."""
        name = f"{self.serving[:-8]}11111111"
        self.domain.handle.checkpointCreateXML(f"<domaincheckpoint><name>{name}</name></domaincheckpoint>", 0)
        for target in ("vda", "vdb"):
            self.domain.qmp("block-dirty-bitmap-remove", node=self.node(target), name=name)
        return name

    def node(self, target: str) -> str:
        """QEMU's name of a running disk."""
        source = self.domain.xml().split(f"file='{self.domain.image(target)}' index='")[1]
        return f"libvirt-{source.split(chr(39))[0]}-format"

    def forget(self, checkpoint: str) -> None:
        """Have libvirt forget a checkpoint whose bitmaps stay."""
        self.domain.handle.checkpointLookupByName(checkpoint).delete(METADATA_ONLY)

    def state(self) -> tuple[list[str], list[list[str]]]:
        """The checkpoints libvirt knows, and the bitmaps of each disk without the marks."""
        return sorted(self.domain.checkpoints()), [
            [name for name in names if "@" not in name] for names in self._bitmaps()
        ]

    def marks(self) -> list[list[str]]:
        """The marks in each disk."""
        return [[name for name in names if "@" in name] for names in self._bitmaps()]

    def _bitmaps(self) -> list[list[str]]:
        if self.domain.running:
            return [
                sorted(bitmap["name"] for bitmap in self.domain.bitmaps(target, marks=True))
                for target in ("vda", "vdb")
            ]
        printed = [run_tool(["qemu-img", "info", self.domain.image(target)]).split() for target in ("vda", "vdb")]
        return [sorted(word for word, before in zip(words[1:], words) if before == "name:") for words in printed]

    def reconcile(self, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        """The module's answer."""
        where = {"domain": self.domain.name, "repository": str(self.workspace / "repository")}
        return run_module(self.workspace, "cbt_checkpoint", check, state="reconciled", **where, **options)

    def reconciled(self, **options: t.Any) -> dict[str, t.Any]:
        """Reconcile in check mode, for real and again; the prediction must hold, and the second time must change nothing."""
        before = self.state()
        predicted = self.reconcile(check=True, **options)
        assert self.state() == before
        done = self.reconcile(**options)
        assert not done.get("failed"), done
        assert {**predicted, "invocation": None} == {**done, "invocation": None}
        after = self.state()
        assert done["diff"] == {"before": _shown(before), "after": _shown(after)}
        again = self.reconcile(**options)
        assert (again["changed"], again["actions"], again["checkpoint"]) == (False, [], done["checkpoint"])
        assert self.state() == after
        return done


@pytest.fixture
def it(hypervisor: Hypervisor, workspace: Path) -> t.Iterator[Reconciling]:
    """A domain of which everything is in order."""
    made = Reconciling(hypervisor, workspace)
    with made.domain:
        yield made


def _in_order(it: Reconciling, *others: str) -> None:
    """Assert that the serving checkpoint, and ``others``, are all there is, and that the next backup is incremental."""
    names = sorted([it.serving, *others])
    assert it.state() == (names, [names, names])
    marked = [name for name in names if name != "theirs"]
    assert it.marks() == [[f"{name}@{target}" for name in marked] for target in ("vda", "vdb")]
    if not it.domain.running:
        it.domain.start()
    it.domain.write("vda", MIB, MIB, 3)
    it.backup(mode="incremental")


def test_nothing_is_done_where_all_is_in_order(it: Reconciling) -> None:
    result = it.reconciled()
    assert (result["changed"], result["checkpoint"], result["foreign"]) == (False, it.serving, [])


@either_way
def test_own_checkpoints_are_reconciled_at_once(running: bool, it: Reconciling) -> None:
    dangling, dead = it.dangling(), it.dead()
    it.forget(it.serving)
    if not running:
        it.domain.destroy()
    assert it.state() == ([dead], [sorted([dangling, it.serving])] * 2)
    result = it.reconciled()
    assert (result["changed"], result["checkpoint"], result["foreign"]) == (True, it.serving, [])
    assert [action.split(":")[0] for action in result["actions"]] == [f"redefine checkpoint {it.serving}"] + [
        f"remove checkpoint {name}" for name in sorted([dangling, dead])
    ]
    _in_order(it)


@either_way
def test_foreign_checkpoints_are_reported_and_left_alone_until_their_removal_is_requested(
    running: bool, it: Reconciling
) -> None:
    created(it.workspace, it.workspace / "other")
    other = it.backup("other")  # another repository of ours, whose checkpoint stays in any case
    it.domain.handle.checkpointCreateXML(THEIRS, 0)
    it.domain.handle.checkpointCreateXML(THEIRS.replace("theirs", "bitmaps-of-theirs"), 0)
    it.forget("bitmaps-of-theirs")
    dangling = it.dangling()
    if not running:
        it.domain.destroy()
    left = it.reconciled()
    assert left["foreign"] == ["bitmaps-of-theirs", "theirs"]
    assert [action.split(":")[0] for action in left["actions"]] == [f"remove checkpoint {dangling}"]
    names = sorted([it.serving, other, "theirs", "bitmaps-of-theirs"])
    assert it.state() == (sorted([it.serving, other, "theirs"]), [names, names])
    gone = it.reconciled(foreign="remove")
    assert [action.split(":")[0] for action in gone["actions"]] == [
        "remove checkpoint bitmaps-of-theirs",
        "remove checkpoint theirs",
    ]
    _in_order(it, other)
    it.backup("other", mode="incremental")


def test_broken_bitmaps_are_removed_and_the_next_backup_reads_in_full(it: Reconciling) -> None:
    it.domain.destroy()
    it.domain.start()
    it.domain.kill()
    it.domain.start()
    result = it.reconciled()
    assert (result["changed"], result["checkpoint"]) == (True, None)
    assert it.state() == ([], [[], []])
    it.serving = it.backup()
    _in_order(it)


def test_a_backup_is_refused_while_a_foreign_job_runs(it: Reconciling) -> None:
    dangling = it.dangling()
    before = it.state()
    it.domain.handle.backupBegin(pull_job_xml(it.domain, it.domain.hypervisor.folder()), None, 0)
    predicted, refused = it.reconcile(check=True), it.reconcile()
    it.domain.abort_job()
    assert refused["failed"] and "a backup job is running on it" in refused["msg"], refused
    assert predicted.get("failed") and predicted["msg"] == refused["msg"], predicted
    assert it.state() == before
    assert dangling in it.reconciled()["actions"][0]
    _in_order(it)
