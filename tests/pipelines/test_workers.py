"""Many tasks at once: each once, whatever the order, and what goes wrong comes out."""

import ctypes
import os

import pytest

from pipelines.workers import AHEAD, BATCH, KEEP_MEMORY, run_parallel


def add(one, other):
    return one + other


def whose(number):
    return number, os.getpid()


def refuse(number):
    raise ValueError(f"not {number}")


@pytest.mark.parametrize(("tasks", "workers"), [(0, 2), (3, 2), (10, 1)])
def test_few_tasks_or_one_worker_stay_in_this_process(tasks, workers):
    results = list(run_parallel(whose, [(n,) for n in range(tasks)], workers=workers))
    assert results == [(number, os.getpid()) for number in range(tasks)]


def test_every_task_is_run_once_with_its_arguments():
    assert list(run_parallel(add, [(1, 2), (3, 4)], workers=2)) == [3, 7]


def test_what_a_task_raises_ends_the_iteration():
    with pytest.raises(ValueError, match="not 0"):
        list(run_parallel(refuse, [(0,), (1,)], workers=1))


def test_an_iteration_may_end_early():
    results = run_parallel(add, [(1, 2), (3, 4)], workers=1)
    assert next(results) == 3
    results.close()


def die_of_seven(number):
    if number == 7:
        os._exit(1)
    return number


def hang_at_seven(number):
    if number == 7:
        ctypes.PyDLL(None).sleep(600)  # as a library does that never comes back, nor gives way
    return number


@pytest.mark.slow
def test_a_task_that_never_ends_takes_no_other_with_it():
    tasks = [(number,) for number in range(BATCH * AHEAD)]
    how = {"workers": 2, "on_death": lambda number: -number, "deadline_s": 1.0}
    results = list(run_parallel(hang_at_seven, tasks, **how))
    assert sorted(results) == sorted([-7, *(n for (n,) in tasks if n != 7)])


@pytest.mark.slow
def test_a_deadly_task_takes_no_other_of_its_batch_with_it():
    tasks = [(number,) for number in range(BATCH * AHEAD * 2)]
    results = run_parallel(die_of_seven, tasks, workers=2, on_death=lambda number: -number)
    assert sorted(results) == sorted([-7, *(n for (n,) in tasks if n != 7)])


@pytest.mark.slow
def test_workers_keep_the_memory_that_they_had():
    results = run_parallel(environment, [(name,) for name in [*KEEP_MEMORY] * 2], workers=2)
    assert sorted(results) == sorted([str(value) for value in KEEP_MEMORY.values()] * 2)
    assert not os.environ.keys() & KEEP_MEMORY  # theirs alone


def environment(name):
    return os.environ.get(name)
