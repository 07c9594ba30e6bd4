"""Publishers that race and die, for test_once.py and test_publishing_crash.py.

A store of theirs has one number in every chunk and attribute: who published it. A mix would show.
"""

import multiprocessing
import os
from functools import partial

import numpy as np
import xarray as xr

from pipelines import storage
from pipelines.once import publish_once

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pipelines.publishing", "xarray", "zarr", "scipy.spatial"])
CHUNKS = 6
ENCODING = {"field": {"chunks": (1, 4)}}


def store_of(number):
    """Six chunks of a publisher's number."""
    return xr.Dataset(
        {"field": (("chunk", "x"), np.full((CHUNKS, 4), float(number)))}, attrs={"by": number}
    )


def numbers_in(url):
    """Who published a store: one number, where it is whole."""
    store = xr.open_zarr(storage.zarr_store(url), chunks=None)
    values = store["field"].values
    assert values.shape == (CHUNKS, 4)
    return set(np.unique(values)) | {store.attrs["by"], store.attrs["stamped"]}


def attempt(number, url):
    """Publish as that number; whether it was this one that did."""
    return publish_once(store_of(number), url, ENCODING, lambda: {"stamped": number})


def race(works):
    """Start pieces of work in processes, at the same moment; what each returned."""
    start = processes.Barrier(len(works))
    pipes = [processes.Pipe(duplex=False) for _ in works]
    runners = [
        processes.Process(target=_run, args=(work, start, told))
        for work, (_, told) in zip(works, pipes, strict=True)
    ]
    for runner in runners:
        runner.start()
    try:
        results = []
        for told, _ in pipes:
            assert told.poll(120), "a publisher is stuck"
            results.append(told.recv())
        return results
    finally:
        for runner in runners:
            runner.join(10)
            runner.kill()


def _run(work, start, told):
    start.wait(60)
    try:
        told.send(work())
    except Exception as error:
        told.send(error)


def attempts(url, publishers, environ=None):
    """So many attempts at one store, for `race`; with what a bucket needs in the environment."""
    return [partial(_attempt_in, environ or {}, n, url) for n in range(1, publishers + 1)]


def _attempt_in(environ, number, url):
    os.environ |= environ
    return attempt(number, url)
