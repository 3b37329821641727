"""Tests of cdropout.dask on a cluster: killed workers, and workers with too little memory."""

import os
import re
import signal
import sys
import zlib
from contextlib import ExitStack

import numpy as np
import pytest

import cdropout as cd

from ..helpers.examples import run_example
from ..helpers.requirements import import_or_skip

import_or_skip("distributed")
import dask.array as da  # noqa: E402
from distributed import Client, KilledWorker, LocalCluster  # noqa: E402

import cdropout.dask as cdd  # noqa: E402

pytestmark = pytest.mark.slow  # each test starts processes that import Dask
MASK = cd.Mask((64, 1000, 1000), 0.3, seed=7, call=2)  # a float32 array of this shape takes 256 MB
MIB = 2**20


@pytest.fixture
def start_cluster(tmp_path):
    """Return a function that starts a cluster on this machine and returns its client."""
    with ExitStack() as stack:

        def start(workers, **options):
            options |= {"dashboard_address": None, "local_directory": tmp_path}
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, **options)
            return stack.enter_context(Client(stack.enter_context(cluster)))

        yield start


# The workers cannot import this file, but Dask sends nested functions to the workers by value.


def lazy(shape, chunks):
    """Return a Dask array whose chunks the workers create; all elements of plane i are i + 1."""

    def make_chunk(block_info):
        (start, stop), *_ = block_info[None]["array-location"]
        chunk = np.ones(block_info[None]["chunk-shape"], np.float32)
        chunk *= np.arange(start + 1, stop + 1, dtype=np.float32)[:, None, None]
        return chunk

    chunks = da.core.normalize_chunks(chunks, shape)
    return da.map_blocks(
        make_chunk, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), "f4")
    )


def compute_checksums(y):
    """Return the checksum of each chunk of y."""

    def checksum(chunk):
        return np.full((1, 1, 1), zlib.crc32(chunk), np.uint32)

    return y.map_blocks(checksum, dtype=np.uint32).compute().ravel().tolist()


def expected_checksums(rows):
    """Apply dropout to a NumPy array; return the checksum of each chunk of `rows` planes."""
    x = np.ones(MASK.shape, np.float32) * np.arange(1, 65, dtype=np.float32)[:, None, None]
    y = cd.dropout(x, mask=MASK)
    return [zlib.crc32(y[i : i + rows]) for i in range(0, 64, rows)]


def process_ids(client):
    return set(client.run(os.getpid).values())


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_worker_does_not_change_the_result(start_cluster, tmp_path):
    client = start_cluster(2)
    before = process_ids(client)
    file = tmp_path / "killed process"

    def kill_once(chunk, block_info):
        """Return the chunk, but kill the first process that computes chunk 20."""
        if block_info[0]["chunk-location"][0] == 20 and not file.exists():
            file.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return chunk

    y = cdd.dropout(lazy(MASK.shape, (2, 1000, 1000)), 0.3, seed=7, call=2)
    y = y.map_blocks(kill_once, dtype=y.dtype, meta=y._meta)
    assert compute_checksums(y) == expected_checksums(2)
    killed = int(file.read_text())
    assert killed in before and killed not in process_ids(client)


def test_dropout_of_array_larger_than_the_memory_of_the_worker(start_cluster):
    limit = 240 * MIB  # Python and its modules use about 120 MiB
    client = start_cluster(1, memory_limit=limit)
    before = process_ids(client)
    y, mask = cdd.dropout(lazy(MASK.shape, (4, 1000, 1000)), 0.3, seed=7, call=2, return_mask=True)
    assert y.nbytes > limit
    assert compute_checksums(y) == expected_checksums(4)
    gx = cdd.dropout_backward(da.ones(mask.shape, dtype=np.float32, chunks=(4, 1000, 1000)), mask)
    kept = np.count_nonzero(np.asarray(mask))
    assert da.count_nonzero(gx).compute() == kept
    assert process_ids(client) == before  # the worker was not restarted


def test_chunk_larger_than_the_memory_of_the_worker_raises(start_cluster):
    start_cluster(1, memory_limit=240 * MIB)
    y = cdd.dropout(lazy((256, 1000, 1000), chunks=-1), 0.3, seed=7)
    with pytest.raises(KilledWorker, match="workers died"):
        da.count_nonzero(y).compute()


def test_scaling_example_prints_times():
    options = ["--workers", "1", "2", "--sizes", "4", "20", "--repeats", "1"]
    output = run_example("dask_scaling.py", *options)
    cell = r" +\d+\.\d\d \(\d+\.\d\d - \d+\.\d\d\) \d+\.\d\d"
    assert re.search(rf"^ +4{cell * 2}\n +20{cell * 2}\n", output, re.MULTILINE), output
    assert output.endswith("Every run kept the same elements.\n")
