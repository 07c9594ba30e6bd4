"""Ports for the parts of a stack that a test starts."""

import random
import socket


def free_base(width: int = 90) -> int:
    """A port from which on so many are free; another one for who asks at the same time."""
    for base in random.sample(range(21000, 31000, 100), 50):
        if all(_free(base + number) for number in range(width)):
            return base
    raise AssertionError("no free ports")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
