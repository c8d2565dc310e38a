"""Work in parallel: results in the order of the tasks, within bounds."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import soaks
from hypothesis import given, settings
from hypothesis import strategies as st

from _cbt import parallel
from _cbt.control import Control
from _cbt.parallel import AHEAD, default_workers, ordered_results

pytestmark = pytest.mark.usefixtures("no_thread_left")


def worker(work: Callable[[Any], Any]) -> Callable[[], contextlib.AbstractContextManager[Callable[[Any], Any]]]:
    """A worker holding nothing of its own."""
    return lambda: contextlib.nullcontext(work)


def test_results_arrive_in_task_order_regardless_of_duration() -> None:
    chance = random.Random(1)
    pauses = [chance.random() * 0.004 for _task in range(300)]

    def work(number: int) -> int:
        time.sleep(pauses[number])
        return number * 2

    with ordered_results(iter(range(300)), worker(work), 6, Control()) as results:
        assert list(results) == [number * 2 for number in range(300)]


@settings(max_examples=soaks.examples(0.4))
@given(st.integers(0, 120), st.integers(1, 9), st.randoms(use_true_random=False))
def test_every_task_is_done_once_whatever_the_numbers(tasks: int, workers: int, chance: random.Random) -> None:
    slow = {number for number in range(tasks) if chance.random() < 0.05}
    done: list[int] = []

    def work(number: int) -> int:
        if number in slow:
            time.sleep(0.001)
        done.append(number)
        return number

    with ordered_results(iter(range(tasks)), worker(work), workers, Control()) as results:
        assert list(results) == list(range(tasks))
    assert sorted(done) == list(range(tasks))


def test_none_and_false_are_valid_results() -> None:
    with ordered_results(iter([1, 2, 3]), worker(lambda number: None if number == 2 else 0), 2, Control()) as results:
        assert list(results) == [0, None, 0]


def test_the_tasks_are_drawn_by_one_worker_at_a_time() -> None:
    drawing = threading.Lock()

    def tasks() -> Iterator[int]:
        for number in range(60):
            assert drawing.acquire(blocking=False), "drawn by two at once"
            time.sleep(0.0005)
            drawing.release()
            yield number

    with ordered_results(tasks(), worker(lambda number: number), 5, Control()) as results:
        assert list(results) == list(range(60))


def test_each_worker_is_entered_and_left_once_in_its_own_thread() -> None:
    entered: list[int] = []
    left: list[int] = []

    @contextlib.contextmanager
    def make_worker() -> Iterator[Callable[[int], int]]:
        me = threading.get_ident()
        entered.append(me)

        def work(number: int) -> int:
            assert threading.get_ident() == me
            return number

        yield work
        left.append(me)

    with ordered_results(iter(range(100)), make_worker, 4, Control()) as results:
        assert sum(results) == 4950
    assert sorted(entered) == sorted(left)
    assert len(entered) == 4
    assert threading.get_ident() not in entered


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_slow_consumer_bounds_how_many_tasks_are_taken_ahead(workers: int) -> None:
    """Memory: what was taken and not yet consumed is never more than the window, however slowly tasks come."""
    taken = itertools.count(1)
    most = 0
    consumed = 0

    def tasks() -> Iterator[int]:
        nonlocal most
        for number in range(workers * AHEAD * 3):
            time.sleep(0.001)  # several workers stand in line meanwhile
            most = max(most, next(taken) - consumed)
            yield number

    with ordered_results(tasks(), worker(lambda number: number), workers, Control()) as results:
        for _result in results:
            time.sleep(0.004)
            consumed += 1
    # One more than the window: the result in the consumer's hands counts as consumed for the window only.
    assert most <= workers * AHEAD + 1


def test_without_a_consumer_the_work_stops_at_the_window() -> None:
    workers = 3
    done: list[int] = []
    reached = threading.Event()

    def work(number: int) -> int:
        done.append(number)
        if len(done) == workers * AHEAD:
            reached.set()
        return number

    with ordered_results(iter(range(1000)), worker(work), workers, Control()) as results:
        assert reached.wait(30)
        time.sleep(0.05)
        assert len(done) == workers * AHEAD
        assert list(results) == list(range(1000))


def test_one_slow_task_does_not_let_the_others_run_away() -> None:
    first = threading.Event()
    done: list[int] = []

    def work(number: int) -> int:
        if number == 0:
            assert first.wait(30)
        done.append(number)
        return number

    with ordered_results(iter(range(200)), worker(work), 4, Control()) as results:
        time.sleep(0.05)
        assert len(done) < 4 * AHEAD
        first.set()
        assert list(results) == list(range(200))


def test_the_number_of_workers_exceeds_that_of_processors_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []
    for processors in (1, 2, 7, 14, 64):
        monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _pid, number=processors: set(range(number)))
        numbers.append(default_workers())
    assert numbers == [3, 4, 9, 16, 16]
