# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs work in parallel and returns the results in order, with bounded memory."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import threading
import typing as t

from .control import Control
from .errors import check_range

Task = t.TypeVar("Task")
Result = t.TypeVar("Result")
Work = t.Callable[[Task], Result]

AHEAD = 4  # finished results of each worker that may wait to be consumed
_WAKE = 0.2  # seconds between checks of the control
_WORKERS = 8  # for small requests
_PORTION = 1024  # requests submitted at once, which bounds the memory for a million of them


def default_workers() -> int:
    """Return two more than the processors, at most 16.

    While some workers wait for QEMU or the disk, others compute.
    """
    return min(16, len(os.sched_getaffinity(0)) + 2)


def check_workers(workers: int | None) -> None:
    """Raise Refused if the number of workers is out of range. None means the default."""
    check_range("workers", workers, "between 1 and 64", 1, 64)


class _Shared(t.Generic[Task, Result]):
    """State of workers and consumer. ``_feeding`` guards ``_numbered`` and ``_taken``, ``_changed`` the rest."""

    def __init__(self, tasks: t.Iterator[Task], window: int) -> None:
        self._numbered = enumerate(tasks)
        self._window = window
        self._changed = threading.Condition()
        self._feeding = threading.Lock()
        self._taken = 0
        self._wanted = 0
        self._finished: dict[int, Result] = {}
        self._over = False
        self.error: BaseException | None = None

    def end(self, error: BaseException | None = None) -> None:
        """Hand out no more tasks. The consumer gets the first error."""
        with self._changed:
            self._over = True
            self.error = self.error or error
            self._changed.notify_all()

    def _drawn(self) -> t.Iterator[tuple[int, Task]]:
        """Yield numbers and tasks for one worker until there is none or the work has ended."""
        while True:
            with self._feeding:
                with self._changed:
                    self._changed.wait_for(lambda: self._over or self._taken - self._wanted < self._window)
                if self._over:
                    return
                try:
                    drawn = next(self._numbered, None)  # not under ``_changed``: making a task may need a request
                except BaseException as error:
                    # At once: for the next caller, a generator that raised looks exhausted.
                    self.end(error)
                    return
                if drawn is None:
                    self.end()
                    return
                self._taken += 1
            yield drawn

    def serve(self, make_worker: t.Callable[[], t.ContextManager[Work[Task, Result]]]) -> None:
        """Do tasks in the thread of one worker."""
        try:
            with make_worker() as work:
                for number, task in self._drawn():
                    result = work(task)
                    with self._changed:
                        self._finished[number] = result
                        self._changed.notify_all()
        except BaseException as error:
            self.end(error)

    def results(self, control: Control) -> t.Iterator[Result]:
        """Yield the results in order. Raises the first error of a worker."""
        while True:
            with self._changed:
                while self._wanted not in self._finished:
                    if self.error is not None:
                        raise self.error
                    if self._over and self._wanted >= self._taken:
                        return
                    self._changed.wait(_WAKE)
                    control.check()
                result = self._finished.pop(self._wanted)
                self._wanted += 1
                self._changed.notify_all()
            control.check()
            yield result


@contextlib.contextmanager
def ordered_results(
    tasks: t.Iterator[Task],
    make_worker: t.Callable[[], t.ContextManager[Work[Task, Result]]],
    workers: int,
    control: Control,
) -> t.Iterator[t.Iterator[Result]]:
    """Yield an iterator over the results of all tasks, in the order of the tasks.

    ``make_worker`` is entered once in each thread and yields the function that runs one task. Its resources, such as a
    connection, belong to that thread. The workers draw from ``tasks``, one at a time. At most ``workers * AHEAD``
    results wait. The consumer gets the first error of any worker. All threads have ended when the block is left.
    """
    shared: _Shared[Task, Result] = _Shared(tasks, workers * AHEAD)
    with contextlib.ExitStack() as threads:
        try:
            for _worker in range(workers):
                thread = threading.Thread(target=shared.serve, args=(make_worker,), daemon=True)
                thread.start()
                threads.callback(thread.join)
            yield shared.results(control)
        finally:
            shared.end()
    if shared.error is not None:  # a worker failed while leaving, after the last result
        raise shared.error


def map_all(action: Work[Task, Result], items: t.Iterable[Task]) -> t.Iterator[Result]:
    """Yield the result of ``action`` for each item, in order.

    For many small requests that wait for the storage, not for each other. Read it to its end. Raises what ``action``
    raises.
    """
    left = iter(items)
    with concurrent.futures.ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        for portion in iter(lambda: list(itertools.islice(left, _PORTION)), []):
            yield from pool.map(action, portion)
