"""Where a process's threads spend their time, by looking at them many times a second.

Each look notes the innermost frames of every thread and what the kernel says of it: computing,
or the system call it is in. `futex` at a line that computes (hashing, compressing) is a thread
that has finished and waits for the interpreter lock; at a line that takes a lock it waits for it.
"""

from __future__ import annotations

import collections
import contextlib
import linecache
import platform
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import TextIO

_INTERVAL = 0.004  # seconds between looks
_DEPTH = 3
_SHOWN = 14
_CALLS = {
    "0": "read",
    "1": "write",
    "7": "poll",
    "17": "pread",
    "18": "pwrite",
    "23": "select",
    "44": "send",
    "45": "recv",
    "46": "sendmsg",
    "47": "recvmsg",
    "61": "wait4",
    "74": "fsync",
    "202": "futex",
    "230": "sleep",
    "232": "epoll",
    "296": "pwritev",
    "328": "pwritev",
}


class Sampler:
    """A context manager that prints to `output` where the threads were inside the block."""

    def __init__(self, output: TextIO = sys.stdout) -> None:
        self._output = output
        self._stop = threading.Event()
        self._looks = 0
        self._stacks: collections.Counter[tuple[str, str]] = collections.Counter()
        self._states: collections.Counter[tuple[str, str]] = collections.Counter()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Sampler:
        self._started, self._cpu = time.monotonic(), time.process_time()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        wall, cpu = time.monotonic() - self._started, time.process_time() - self._cpu
        self._report(wall, cpu)

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._looks += 1
            kernel_ids = {thread.ident: thread.native_id for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident != threading.get_ident():
                    self._note(ident, kernel_ids.get(ident), frame)

    def _note(self, ident: int, kernel_id: int | None, frame: FrameType) -> None:
        role = "main" if ident == threading.main_thread().ident else "worker"
        state = _state(kernel_id)
        self._states[role, state] += 1
        self._stacks[f"{role:6} {state}", _stack(frame)] += 1

    def _report(self, wall: float, cpu: float) -> None:
        def say(text: str) -> None:
            print(text, file=self._output)

        looks = max(self._looks, 1)
        say(f"{wall:.2f} s, of which {cpu:.2f} s of processor; {looks} looks")
        say("Threads on average in each state (1.00 is one thread all the time):")
        for (role, state), count in self._states.most_common(_SHOWN):
            say(f"  {count / looks:5.2f}  {role:6} {state}")
        say("Threads on average at each place:")
        for (what, stack), count in self._stacks.most_common(_SHOWN):
            say(f"  {count / looks:5.2f}  {what}\n{stack}")


def _state(kernel_id: int | None) -> str:
    """`computing`, or the system call a thread is in."""
    if kernel_id is None:
        return "ended"
    with contextlib.suppress(OSError):
        number = Path(f"/proc/self/task/{kernel_id}/syscall").read_text().split()[0]
        if number == "running":
            return "computing"
        return _CALLS.get(number, f"call {number}") if platform.machine() == "x86_64" else number
    return "ended"


def _stack(frame: FrameType) -> str:
    """The innermost frames, each with its line of source."""
    lines: list[str] = []
    walker: FrameType | None = frame
    while walker is not None and len(lines) < _DEPTH:
        code = walker.f_code
        source = linecache.getline(code.co_filename, walker.f_lineno).strip()
        place = f"{Path(code.co_filename).name}:{walker.f_lineno} {code.co_name}"
        lines.append(f"           {place:44} {source[:70]}")
        walker = walker.f_back
    return "\n".join(lines)
