"""Forecasters that go wrong, for a child process: the newest frame's first pixel says how."""

import ctypes
import os
import signal
import time

import torch

from models.baselines import Persistence
from pipelines.errors import SquallError

WELL, HANG, KILLED, SEGFAULT, RAISE, RAISE_ODDLY, HANG_DEAF, EXIT, UNKNOWN, ABSURD = range(10)


class OddError(Exception):
    """Can be pickled, and not read again."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Wayward(Persistence):
    """Persistence, unless the first pixel of the newest frame says otherwise."""

    name = "wayward"
    past_frames = 2

    def predict(self, past, lead_times):
        what = int(past.values[-1, 0, 0])
        if what == HANG:
            time.sleep(600)
        if what == HANG_DEAF:  # holds the interpreter's lock: no other thread runs
            ctypes.PyDLL(None).sleep(600)
        if what == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == SEGFAULT:
            ctypes.string_at(0)
        if what == RAISE:
            raise SquallError("it is wayward", found=1, expected=2, remedy="be patient")
        if what == RAISE_ODDLY:
            raise OddError("this", "that")
        if what == EXIT:
            raise SystemExit(3)
        forecast = super().predict(past, lead_times)
        if what == UNKNOWN:
            forecast[-1, 1, 1] = float("nan")
        if what == ABSURD:
            forecast[-1, 1, 1] = 501.0
        return forecast


def serving(root, name, settings):
    """In place of `models.prediction.serving_forecaster`."""
    return Wayward()


class Counting(Persistence):
    """Forecasts what its process is like: pid, threads."""

    name = "counting"

    def predict(self, past, lead_times):
        forecast = super().predict(past, lead_times)
        forecast[:, 0, :2] = [os.getpid(), torch.get_num_threads()]
        return forecast


def slow_to_load(seconds):
    time.sleep(seconds)
    return Wayward()


def loads_badly():
    raise SquallError("nothing to load", found=0, expected=1, remedy="train")


def dies_loading():
    os._exit(7)
