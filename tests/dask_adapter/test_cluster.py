"""Tests of dropout on a Dask cluster of processes: a worker that dies, and too little memory."""

import os
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip

import_or_skip("distributed")
import dask.array as da  # noqa: E402
from distributed import Client, KilledWorker, LocalCluster  # noqa: E402

import cdropout.dask as cdd  # noqa: E402

pytestmark = pytest.mark.slow  # each test starts processes that import Dask
MASK = cd.Mask((64, 1000, 1000), 0.3, seed=7, call=2)  # of float32, 256 MB
MIB = 2**20


@pytest.fixture
def start(tmp_path):
    """Start clusters on this machine; each is stopped in the end."""
    started = []

    def client(workers, **options):
        started.append(
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address=None,
                local_directory=tmp_path,
                **options,
            )
        )
        started.append(Client(started[-1]))
        return started[-1]

    yield client
    for thing in reversed(started):
        thing.close()


# Functions within functions travel to the workers by value: those cannot import this file.


def lazy(shape, chunks):
    """Return an array that its workers make, chunk by chunk."""

    def numbers(block_info):
        (first, last), *_ = block_info[None]["array-location"]
        chunk = np.ones(block_info[None]["chunk-shape"], np.float32)
        chunk *= np.arange(first + 1, last + 1, dtype=np.float32)[:, None, None]
        return chunk

    chunks = da.core.normalize_chunks(chunks, shape)
    return da.map_blocks(numbers, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), "f4"))


def computed(y):
    """Return the checksums of y's chunks."""

    def checksum(chunk):
        return np.full((1, 1, 1), zlib.crc32(chunk), np.uint32)

    return y.map_blocks(checksum, dtype=np.uint32).compute().ravel().tolist()


def expected(rows):
    """Return the checksums of the result in chunks of so many rows, as it is in memory here."""
    x = np.ones(MASK.shape, np.float32) * np.arange(1, 65, dtype=np.float32)[:, None, None]
    y = cd.dropout(x, mask=MASK)
    return [zlib.crc32(y[i : i + rows]) for i in range(0, 64, rows)]


def pids(client):
    return set(client.run(os.getpid).values())


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_worker_that_is_killed_changes_nothing(start, tmp_path):
    client = start(2)
    before = pids(client)
    victim = tmp_path / "victim"

    def kill_once(chunk, block_info):
        """Die in the middle, in the first process that comes to chunk 20."""
        if block_info[0]["chunk-location"][0] == 20 and not victim.exists():
            victim.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return chunk

    y = cdd.dropout(lazy(MASK.shape, (2, 1000, 1000)), 0.3, seed=7, call=2)
    assert computed(y.map_blocks(kill_once, dtype=y.dtype, meta=y._meta)) == expected(2)
    killed = int(victim.read_text())
    assert killed in before and killed not in pids(client)


def test_an_array_larger_than_the_memory_of_its_worker(start):
    limit = 240 * MIB  # of which some 120 MiB are Python and its modules
    client = start(1, memory_limit=limit)
    before = pids(client)
    y, mask = cdd.dropout(lazy(MASK.shape, (4, 1000, 1000)), 0.3, seed=7, call=2, return_mask=True)
    assert y.nbytes > limit
    assert computed(y) == expected(4)
    gx = cdd.dropout_backward(da.ones(mask.shape, dtype=np.float32, chunks=(4, 1000, 1000)), mask)
    kept = np.count_nonzero(np.asarray(mask))
    assert da.count_nonzero(gx).compute() == kept
    assert pids(client) == before  # it lived through all that


def test_a_chunk_larger_than_the_memory_of_its_worker_is_an_error(start):
    start(1, memory_limit=240 * MIB)
    y = cdd.dropout(lazy((256, 1000, 1000), chunks=-1), 0.3, seed=7)
    with pytest.raises(KilledWorker, match="workers died"):
        da.count_nonzero(y).compute()


def test_the_example_prints_a_table():
    example = Path(__file__).parents[2] / "examples" / "dask_scaling.py"
    options = ["--workers", "1", "2", "--sizes", "4", "20", "--repeats", "1"]
    done = subprocess.run([sys.executable, example, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cell = r" +\d+\.\d\d \(\d+\.\d\d - \d+\.\d\d\) \d+\.\d\d"
    assert re.search(rf"^ +4{cell * 2}\n +20{cell * 2}\n", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.endswith("Every run kept the same elements.\n")
