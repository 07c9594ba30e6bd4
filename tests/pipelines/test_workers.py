"""Many tasks at once: each once, whatever the order, and what goes wrong comes out."""

import os

import pytest

from pipelines.workers import run_parallel


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
