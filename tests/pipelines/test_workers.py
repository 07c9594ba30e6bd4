"""Many tasks at once: each once, whatever the order, and what goes wrong comes out."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.errors import FrameError
from pipelines.workers import AHEAD, BATCH, KEEP_MEMORY, run_parallel

REPOSITORY = Path(__file__).parents[2]


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


# A process beside --------------------------------------------------------------------------------


def negative(number):
    return -number


def beside(function, tasks, deadline_s=30.0):
    """Their results from a process beside this one."""
    how = {"workers": 2, "on_death": negative, "deadline_s": deadline_s}
    return run_parallel(function, [(task,) for task in tasks], **how)


def hang_and_tell(path):
    Path(f"{path}.new").write_text(str(os.getpid()))
    os.rename(f"{path}.new", path)
    hang_at_seven(7)


def refuse_seven(number):
    if number == 7:
        raise FrameError("no", found=number, expected="another", remedy="count on")
    return number, os.getpid()


def test_with_a_deadline_few_tasks_run_in_one_process_beside():
    results = list(beside(whose, [1, 2, 3]))
    assert [number for number, _ in results] == [1, 2, 3]
    (process,) = {process for _, process in results}
    assert process != os.getpid()
    assert list(beside(whose, [4])) == [(4, process)]


@pytest.mark.parametrize("ends", [hang_at_seven, die_of_seven])
def test_a_task_that_ends_its_process_is_given_up_and_the_others_are_not(ends):
    assert list(beside(ends, [5, 7, 9], deadline_s=1.0)) == [5, -7, 9]


def test_what_a_task_beside_raises_comes_out_with_its_trace():
    results = beside(refuse_seven, [5, 7, 9])
    _, process = next(results)
    with pytest.raises(FrameError, match="found 7") as raised:
        next(results)
    assert "in refuse_seven" in raised.value.__notes__[0]
    assert list(beside(whose, [4])) == [(4, process)]


def test_a_process_beside_knows_the_environment_as_it_is_now(monkeypatch):
    for said in ("one thing", "another"):
        monkeypatch.setenv("SQUALL_SAID", said)
        assert list(beside(environment, ["SQUALL_SAID"])) == [said]


def test_a_process_beside_that_was_killed_while_idle_is_no_tasks_fault():
    ((_, process),) = beside(whose, [1])
    os.kill(process, signal.SIGKILL)
    assert ends(process)
    ((_, other),) = beside(whose, [1])
    assert other != process


def die_once(path):
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is short
    return "alive"


def test_a_task_whose_process_was_killed_is_tried_again(tmp_path):
    assert list(beside(die_once, [str(tmp_path / "died")])) == ["alive"]


def test_a_process_that_does_not_start_is_no_tasks_fault(monkeypatch):
    monkeypatch.setattr("pipelines.workers._idle", [])
    monkeypatch.setattr("pipelines.workers.START", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r"did not start \(exit 3\)"):
        list(beside(whose, [1]))


SCRIPT = """
import time
from tests.pipelines.test_workers import *
if __name__ == "__main__":
    results = beside({function}, [{task!r}])
    print(next(results), flush=True)
    time.sleep(60)
"""


def script(tmp_path, text):
    (tmp_path / "script.py").write_text(text)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_and_tell(path):
    Path(f"{path}.new").write_text(str(os.getpid()))
    os.rename(f"{path}.new", path)
    time.sleep(2)
    Path(f"{path}.written").touch()


def test_a_process_beside_writes_nothing_for_a_parent_that_is_gone(tmp_path):
    told = tmp_path / "process"
    parent = script(tmp_path, SCRIPT.format(function="wait_and_tell", task=str(told)))
    assert until(told.exists)
    parent.kill()
    parent.wait()
    assert ends(int(told.read_text()), within_s=1.5)
    assert not (tmp_path / "process.written").exists()


def test_a_process_beside_ends_with_its_parent_however_that_ends(tmp_path):
    parent = script(tmp_path, SCRIPT.format(function="whose", task=1))
    process = int(parent.stdout.readline().strip("()\n").split(",")[1])
    assert runs(process)
    parent.kill()
    parent.wait()
    assert ends(process)


def test_an_interrupted_parent_does_not_wait_for_a_process_that_hangs(tmp_path):
    told = tmp_path / "process"
    parent = script(tmp_path, SCRIPT.format(function="hang_and_tell", task=str(told)))
    assert until(told.exists)
    process = int(told.read_text())
    parent.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in parent.communicate(timeout=20)[1]
    assert ends(process)


def test_a_script_needs_no_guard_and_leaves_nothing(tmp_path):
    unguarded = SCRIPT.format(function="whose", task=1).replace("__name__ ==", "True or")
    parent = script(tmp_path, unguarded.replace("time.sleep(60)", ""))
    told, said = parent.communicate(timeout=60)
    assert (parent.returncode, said) == (0, "")
    assert ends(int(told.strip("()\n").split(",")[1]))


def runs(process):
    """Whether a process is there (and not only its exit code)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def ends(process, within_s=20.0):
    return until(lambda: not runs(process), within_s)


def until(true, within_s=20.0):
    for _ in range(int(within_s / 0.1)):
        if found := true():
            return found
        time.sleep(0.1)
    return true()
