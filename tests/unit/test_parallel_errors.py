"""Work in parallel: any failure reaches the consumer, and every thread ends."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import soaks
from hypothesis import given, settings
from hypothesis import strategies as st

from _cbt.control import Control
from _cbt.errors import Interrupted
from _cbt.parallel import ordered_results

pytestmark = pytest.mark.usefixtures("no_thread_left")


class Broken(Exception):
    """What goes wrong in these tests."""


def worker(work: Callable[[Any], Any]) -> Callable[[], contextlib.AbstractContextManager[Callable[[Any], Any]]]:
    return lambda: contextlib.nullcontext(work)


def same(number: int) -> int:
    return number


@settings(max_examples=soaks.examples(0.4))
@given(st.integers(1, 60), st.integers(1, 6), st.data())
def test_a_failing_task_is_raised_after_the_results_before_it(tasks: int, workers: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, tasks - 1))

    def work(number: int) -> int:
        if number == bad:
            raise Broken(number)
        return number

    seen = []
    with (
        pytest.raises(Broken, match=str(bad)),
        ordered_results(iter(range(tasks)), worker(work), workers, Control()) as results,
    ):
        for result in results:
            seen.append(result)
    assert seen == list(range(len(seen)))
    assert len(seen) <= bad


@pytest.mark.parametrize("workers", [1, 2, 6])
@pytest.mark.parametrize("good", [0, 1, 50])
def test_tasks_that_cannot_be_made_are_an_error(workers: int, good: int) -> None:
    def tasks() -> Iterator[int]:
        yield from range(good)
        raise Broken("the server is gone")

    with (
        pytest.raises(Broken, match="the server is gone"),
        ordered_results(tasks(), worker(same), workers, Control()) as results,
    ):
        list(results)


def test_tasks_that_cannot_be_made_never_pass_for_the_end_of_the_tasks() -> None:
    """A generator that raised is exhausted to whoever asks it next: the other workers must not take that for the end.

    Else a disk whose extents cannot be told any further would count as read to its end.
    """

    def tasks() -> Iterator[int]:
        yield from range(10)
        raise Broken("the server is gone")

    @contextlib.contextmanager
    def leaves_slowly() -> Iterator[Callable[[int], int]]:
        try:
            yield same
        finally:
            time.sleep(0.1)  # such as closing a connection

    with pytest.raises(Broken), ordered_results(tasks(), leaves_slowly, 4, Control()) as results:
        list(results)
        pytest.fail("the results ended as if all tasks were done")


@pytest.mark.parametrize("bad", [0, 1, 3], ids=["the first", "the second", "the last"])
def test_a_failure_to_create_a_worker_is_an_error(bad: int) -> None:
    made = itertools.count()

    def make_worker() -> contextlib.AbstractContextManager[Callable[[int], int]]:
        if next(made) == bad:
            raise Broken("cannot connect")
        return contextlib.nullcontext(same)

    with (
        pytest.raises(Broken, match="cannot connect"),
        ordered_results(itertools.count(), make_worker, 4, Control()) as results,
    ):
        for _result in results:
            pass


def test_a_worker_that_fails_on_exit_is_an_error_even_after_all_results() -> None:
    """Such as a file whose last bytes cannot be written when it is closed."""

    consumed = threading.Event()

    @contextlib.contextmanager
    def make_worker() -> Iterator[Callable[[int], int]]:
        yield same
        assert consumed.wait(30)
        raise Broken("cannot close")

    with (
        pytest.raises(Broken, match="cannot close"),
        ordered_results(iter(range(5)), make_worker, 2, Control()) as results,
    ):
        assert list(results) == list(range(5))
        consumed.set()


def test_a_failing_consumer_ends_all_threads() -> None:
    before = threading.active_count()
    with pytest.raises(Broken), ordered_results(itertools.count(), worker(same), 4, Control()) as results:
        for result in results:
            if result == 20:
                raise Broken
    assert threading.active_count() == before


def test_a_consumer_that_leaves_early_ends_all_threads() -> None:
    before = threading.active_count()
    with ordered_results(itertools.count(), worker(same), 4, Control()) as results:
        assert next(results) == 0
    assert threading.active_count() == before


def test_a_consumer_that_never_looks_ends_all_threads() -> None:
    before = threading.active_count()
    with ordered_results(itertools.count(), worker(same), 4, Control()):
        pass
    assert threading.active_count() == before


def test_the_consumers_error_counts_and_not_what_follows_from_it() -> None:
    def work(number: int) -> int:
        if number > 5:
            raise Broken("worker")
        return number

    with (
        pytest.raises(KeyError, match="consumer"),
        ordered_results(iter(range(100)), worker(work), 2, Control()) as results,
    ):
        next(results)
        raise KeyError("consumer")


def test_even_an_exit_in_a_worker_reaches_the_consumer() -> None:
    def work(_number: int) -> int:
        raise SystemExit(3)

    with pytest.raises(SystemExit), ordered_results(iter(range(3)), worker(work), 2, Control()) as results:
        list(results)


def test_an_interrupt_before_the_start_ends_it_at_once() -> None:
    control = Control()
    control.request("SIGTERM")
    seen = []
    with (
        pytest.raises(Interrupted, match="Ended by SIGTERM"),
        ordered_results(iter(range(100)), worker(same), 3, control) as results,
    ):
        for result in results:
            seen.append(result)
    assert seen == []


def test_an_interrupt_between_results_ends_it() -> None:
    control = Control()
    seen = []
    with pytest.raises(Interrupted), ordered_results(itertools.count(), worker(same), 3, control) as results:
        for result in results:
            seen.append(result)
            if result == 7:
                control.request("SIGINT")
    assert seen == list(range(8))


def test_an_interrupt_is_honoured_while_waiting_for_a_result() -> None:
    control, release = Control(), threading.Event()

    def work(number: int) -> int:
        control.request("SIGHUP")
        assert release.wait(30)
        return number

    with (
        pytest.raises(Interrupted, match="SIGHUP"),
        ordered_results(iter(range(10)), worker(work), 2, control) as results,
    ):
        try:
            list(results)
        finally:
            release.set()


def test_the_first_reason_of_an_interrupt_is_reported() -> None:
    control = Control()
    control.check()
    control.request("SIGTERM")
    control.request("SIGINT")
    with pytest.raises(Interrupted, match="SIGTERM"):
        control.check()


def test_threads_that_cannot_be_started_leave_none_of_the_others_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = threading.Thread.start, itertools.count()

    def start(thread: threading.Thread) -> None:
        if next(started) == 2:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    before = threading.active_count()
    with (
        pytest.raises(RuntimeError, match="can't start"),
        ordered_results(itertools.count(), worker(same), 4, Control()),
    ):
        pass
    assert threading.active_count() == before
