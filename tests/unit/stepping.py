"""Real code run step by step: several actors on one store, each halted before every request until a test lets it go on."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from stores_for_tests import MemoryStore, MemoryUpload

from _cbt.errors import CbtError
from _cbt.repository.stores.base import Entry

PAGE = 3  # objects that a listing gives at once; between two pages anything may happen


class Crash(BaseException):
    """What ends an actor at a request, as a kill would: neither this request nor a later one reaches the store."""


class Actor:
    """Code that works on a store through ``SteppedStore``, in a thread that runs only while the test waits for it."""

    def __init__(self, name: str, work: Callable[[Actor], object]) -> None:
        self.name = name
        self.runs_on: Callable[[], bool] = lambda: False  # whether it does not halt where it is
        self.pending = ""
        self.halted_at = 0.0
        self.over = False
        self.error: CbtError | None = None
        self._fault: BaseException | None = None
        self._crashed = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()
        self._back.acquire()

    def _run(self, work: Callable[[Actor], object]) -> None:
        try:
            self.pause("begin", 0.0)
            work(self)
        except Crash:
            pass
        except CbtError as error:
            self.error = error
        except BaseException as error:  # a fault of the code or of the test, told by ``step``
            self._fault = error
        self.over = True
        self._back.release()

    def pause(self, request: str, now: float) -> None:
        """Halt before a request. Called by the actor's own thread."""
        if self._crashed:
            raise Crash
        self.pending, self.halted_at = request, now
        if self.runs_on():
            return
        self._back.release()
        self._go.acquire()
        if self._crashed:
            raise Crash

    def step(self) -> None:
        """Let the request go that it waits with, and run on to the next one. Raises what is a fault of the code, not an error it tells."""
        if self.over:
            return
        self._go.release()
        self._back.acquire()
        if self.over:
            self._thread.join()
        if self._fault is not None:
            raise self._fault

    def crash(self) -> None:
        """End it where it is."""
        self._crashed, self.runs_on = True, lambda: False
        self.step()


def halted(actor: Actor, requests: int, meanwhile: Callable[[], None], check: Callable[[], None]) -> bool:
    """It does so many requests, then others do all of their work, then it the rest, checked after each. False if there was no rest."""
    for _request in range(requests):
        actor.step()
    rest = not actor.over
    meanwhile()
    while not actor.over:
        actor.step()
        check()
    return rest


class _SteppedUpload:
    def __init__(self, store: SteppedStore, upload: MemoryUpload, name: str) -> None:
        self._store, self._upload, self._name = store, upload, name

    def write(self, buffers: Any, offset: int) -> None:
        self._upload.write(buffers, offset)

    def commit(self, replace: bool = True) -> bool:
        self._store.halt(f"put {self._name}")
        return self._upload.commit(replace)

    def abandon(self) -> None:
        self._upload.abandon()


class SteppedStore:
    """A store in memory as one actor sees it. A listing is no snapshot: what appears meanwhile is not seen, what goes is not either."""

    location = "memory"
    local_path = None

    def __init__(self, store: MemoryStore, actor: Actor) -> None:
        self._store, self._actor = store, actor
        self.foreign = store.foreign

    def halt(self, request: str) -> None:
        """Wait before a request."""
        self._actor.pause(request, self._store.clock)

    def upload(self, name: str) -> _SteppedUpload:
        return _SteppedUpload(self, self._store.upload(name), name)

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        self.halt(f"put {name}")
        return self._store.put(name, data, replace)

    def get(self, name: str, most: int | None = None) -> bytes:
        self.halt(f"get {name}")
        return self._store.get(name, most)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self.halt(f"get {name}")
        return self._store.get_range(name, offset, length)

    def size(self, name: str) -> int:
        self.halt(f"size {name}")
        return self._store.size(name)

    def modified(self, name: str) -> float:
        self.halt(f"modified {name}")
        return self._store.modified(name)

    def list(self, prefix: str) -> Iterator[str]:
        return (entry.name for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Entry]:
        self.halt(f"list {prefix}")
        names = sorted(self._store.list(prefix))
        for index, name in enumerate(names):
            if index and index % PAGE == 0:
                self.halt(f"list on {prefix}")
            if name in self._store.objects:
                yield Entry(name, len(self._store.objects[name]), self._store.times[name])

    def delete(self, name: str) -> None:
        self.halt(f"delete {name}")
        self._store.delete(name)

    def sweep(self) -> None:
        self._store.sweep()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class _Later(concurrent.futures.Future[Any]):
    """A future whose work is done when its result is asked for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self.set_result(self._work())
        return super().result(timeout)


class OneAfterAnother:
    """In place of a pool of threads: all work is done by the thread that asks for the results, or waits for the pool's end."""

    def __init__(self, max_workers: int = 1) -> None:
        self._submitted: list[_Later] = []

    def __enter__(self) -> OneAfterAnother:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> _Later:
        self._submitted.append(_Later(lambda: work(*arguments)))
        return self._submitted[-1]

    def map(self, work: Callable[..., Any], items: Any) -> Iterator[Any]:
        return (work(item) for item in items)

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        for each in [] if cancel_futures else self._submitted:
            each.result()


@contextlib.contextmanager
def ordered_results(
    tasks: Any, make_worker: Callable[[], Any], _workers: int, _control: Any
) -> Iterator[Iterator[Any]]:
    """Replaces threads that work ahead: each result is computed when it is requested."""
    with make_worker() as work:
        yield map(work, tasks)
