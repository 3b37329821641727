"""Tests of stream_copy, which copies with streaming stores."""

import numpy as np
import pytest

from cdropout._core.streaming_copy import stream_copy


@pytest.mark.parametrize("offset", [0, 1, 15, 63])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_stream_copy_writes_only_the_target(offset, n):
    source = np.random.default_rng(0).integers(1, 256, n + 7, np.uint8)[7:]
    memory = np.zeros(offset + n + 64, np.uint8)
    stream_copy(memory[offset : offset + n], source)
    assert np.array_equal(memory[offset : offset + n], source)
    assert not memory[:offset].any() and not memory[offset + n :].any()


def test_stream_copy_raises_for_different_sizes_and_strided_arrays():
    a = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="to has to have the 8 bytes of source, but has 4"):
        stream_copy(a[:4], a)
    with pytest.raises(ValueError, match="to and source have to be contiguous"):
        stream_copy(a[::2], a[:4].copy())
    assert not a.any()
