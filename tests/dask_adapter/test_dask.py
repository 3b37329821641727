"""Tests of cdropout.dask: results for several chunk sizes, task names, generators and errors."""

import pickle
import re

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import assert_same_bits, normal
from ..helpers.examples import run_example
from ..helpers.requirements import import_or_skip
from ..helpers.subprocess_runner import run

import_or_skip("dask")
import dask  # noqa: E402
import dask.array as da  # noqa: E402

import cdropout.dask as cdd  # noqa: E402

SHAPE = (60, 47, 5)
X = normal(SHAPE)
CHUNKS = [
    SHAPE,
    (1, 47, 5),
    (60, 1, 5),
    (7, 9, 2),
    ((0, 10, 0, 50), (47, 0), (2, 3)),
    ((59, 1), (1, 45, 1), (1, 1, 1, 1, 1)),
]
FLOATS_TEXT = "float16, bfloat16, float32 or float64"


def lazy(array=X, chunks=(20, 47, 3)):
    """Return a Dask array of the NumPy array."""
    return da.from_array(array, chunks=chunks)


# ---- the mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_chunks_do_not_change_the_result(chunks, scheduler):
    x = lazy(chunks=chunks)
    y, mask = cdd.dropout(x, 0.3, seed=-7, call=2, return_mask=True)
    gx = cdd.dropout_backward(y, mask)
    assert mask == cd.Mask(SHAPE, 0.3, -7, 2)
    assert y.chunks == gx.chunks == x.chunks and y.dtype == gx.dtype == x.dtype
    expected = reference.dropout(X, 0.3, -7, 2)
    y, gx, kept = dask.compute(y, gx, mask.to_dask(chunks), scheduler=scheduler)
    assert_same_bits(y, expected)
    assert_same_bits(cd.dropout(X, mask=mask), expected)
    assert_same_bits(gx, mask.apply(y))
    np.testing.assert_array_equal(kept, reference.keep(-7, 2, 0.3, 0, X.size).reshape(SHAPE))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("p", [0.5, 1e-3, 1])
def test_result_equals_numpy_for_each_dtype_and_p(dtype, p):
    x = X.astype(dtype)
    y = cdd.dropout(lazy(x), p, seed=3)
    assert y.dtype == dtype and y._meta.dtype == dtype and type(y._meta) is np.ndarray
    np.testing.assert_array_equal(y.compute(), cd.dropout(x, p, rng=3), strict=True)


@pytest.mark.parametrize("axes", [0, (0, 2), -2, [1, 2], ()])
def test_result_with_broadcast_dims_equals_numpy(axes):
    y, mask = cdd.dropout(lazy(), 0.4, seed=1, broadcast_dims=axes, return_mask=True)
    expected, expected_mask = cd.dropout(X, 0.4, rng=1, broadcast_dims=axes, return_mask=True)
    assert mask == expected_mask
    np.testing.assert_array_equal(y.compute(), expected)


@pytest.mark.parametrize("shape, chunks", [((), ()), ((0, 4), 2), ((3, 0), (1, 0)), ((1,), 1)])
def test_dropout_of_small_and_empty_arrays(shape, chunks):
    x = np.ones(shape, np.float32)
    y = cdd.dropout(lazy(x, chunks), 0.5, seed=1).compute()
    np.testing.assert_array_equal(y, cd.dropout(x, rng=1))
    kept = cd.Mask(shape, 0.5, 1).to_dask().compute()
    np.testing.assert_array_equal(kept, np.asarray(cd.Mask(shape, 0.5, 1)), strict=True)


def test_to_dask_equals_the_mask():
    mask = cd.Mask((10**5, 10**5, 10**5), 0.1, -1)[5:50, ::-25000, None, 3]
    kept = mask.to_dask((7, 2, 1))
    assert kept.shape == mask.shape and kept.chunks[0] == (7,) * 6 + (3,)
    np.testing.assert_array_equal(kept.compute(), np.asarray(mask))
    assert cd.Mask((10**5, 10**5), 0.1).to_dask().nbytes == 10**10  # this draws no element


def test_backward_of_gradient_with_other_chunks():
    gy = lazy(X, (11, 47, 5))
    _, mask = cdd.dropout(lazy(), 0.3, seed=1, return_mask=True)
    assert_same_bits(cdd.dropout_backward(gy, mask).compute(), mask.apply(X))


def test_only_computed_chunks_are_read():
    read = []

    def block(block_id):
        read.append(block_id)
        return np.ones((2,), np.float32)

    x = da.map_blocks(block, chunks=((2,) * 9,), dtype=np.float32, meta=np.empty(0, np.float32))
    y = cdd.dropout(x, 0.5, seed=1)
    assert read == []
    y4 = y[8:10].compute(scheduler="synchronous")
    assert read == [(4,)]
    np.testing.assert_array_equal(y4, cd.dropout(np.ones(18, np.float32), rng=1)[8:10])


# ---- the graph ----------------------------------------------------------------------------------


def graph_bytes(x):
    return len(pickle.dumps(x.__dask_graph__()))


@pytest.mark.parametrize("shape, chunks", [((100_000, 1), (1, 1)), ((317, 317), 1)], ids=str)
def test_graph_is_one_layer_that_stores_no_tasks(shape, chunks):
    x = da.ones(shape, chunks=chunks, dtype=np.float32)
    y, mask = cdd.dropout(x, 0.5, seed=1, return_mask=True)
    for array in (y, cdd.dropout_backward(x, mask)):
        assert array.npartitions >= 100_000
        added = set(array.dask.layers) - set(x.dask.layers)
        assert added == {array.name} and not array.dask.layers[array.name].is_materialized()
        assert graph_bytes(array) - graph_bytes(x) < 500_000
    assert graph_bytes(mask.to_dask(1)) < 1_000_000
    part = y[31:33]  # the optimized graph has tasks for the needed chunks only
    assert len(part.__dask_optimize__(part.dask, part.__dask_keys__())) <= 4 * part.npartitions
    np.testing.assert_array_equal(part.compute(), mask.apply(np.ones(shape, "f4"))[31:33])


@pytest.mark.parametrize("optimize_graph", [True, False])
def test_layer_can_be_fused_with_its_neighbours(optimize_graph):
    x = da.map_blocks(np.negative, lazy(chunks=(7, 9, 2)), dtype=np.float32)
    y = cdd.dropout(x + 1, 0.3, seed=2)
    y = cdd.dropout(y.map_blocks(np.sqrt, dtype=np.float32), 0.1, seed=3)
    z = (y * 2)[:, 5:31].sum(axis=1)
    with np.errstate(invalid="ignore"):
        expected = cd.dropout(np.sqrt(cd.dropout(1 - X, 0.3, rng=2)), 0.1, rng=3)
        y, z = dask.compute(y, z, optimize_graph=optimize_graph, scheduler="synchronous")
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(z, (expected * 2)[:, 5:31].sum(axis=1), rtol=1e-5)


@pytest.mark.slow  # starts a process to set the option before the import
def test_result_is_equal_with_array_expressions():
    script = (
        "import dask; dask.config.set({'array.query-planning': True})\n"
        "import dask.array as da, numpy as np, cdropout as cd, cdropout.dask\n"
        "x = da.from_array(np.full((60, 47), 2, 'f4'), chunks=(7, 9))\n"
        "y, mask = cdropout.dask.dropout(x, 0.3, seed=1, return_mask=True)\n"
        "y = y.map_blocks(np.negative, dtype='f4')[5:]\n"
        "print((y.compute() == -mask.apply(np.full(x.shape, 2, 'f4'))[5:]).all())\n"
        "print((mask.to_dask(8).compute() == np.asarray(mask)).all())"
    )
    _, output, errors = run(script)
    assert output.split() == ["True", "True"], errors


# ---- identity, task names, generators -----------------------------------------------------------


def test_evaluation_and_p_0_return_x():
    x = lazy()
    for arguments in [{"p": 0}, {"p": 0.5, "training": False}]:
        before = cd.default_generator.state
        y, mask = cdd.dropout(x, return_mask=True, **arguments)
        assert y is x and cdd.dropout_backward(x, mask) is x and mask.p == 0
        assert cd.default_generator.state == before
    assert cdd.dropout_backward(x, cd.Mask(SHAPE, 0, scale=2)).compute().sum() == (2 * X).sum()


def test_x_of_unknown_size_is_returned_if_no_mask_is_needed():
    x = lazy()
    x = x[x[:, 0, 0] > 0]
    for arguments in ({"p": 0}, {"training": False}, {"training": False, "mask": MASK}):
        assert cdd.dropout(x, **arguments) is x
        with pytest.raises(ValueError, match=re.escape(UNKNOWN_SIZE)):
            cdd.dropout(x, return_mask=True, **arguments)
    assert cdd.dropout(x, 0, seed=1, broadcast_dims=2) is x
    with pytest.raises(ValueError, match="broadcast_dims has to be in"):
        cdd.dropout(x, 0, seed=1, broadcast_dims=3)
    for arguments in ({"p": 1}, {"mask": cd.Mask(SHAPE, 0)}):
        with pytest.raises(ValueError, match=re.escape(UNKNOWN_SIZE)):
            cdd.dropout(x, **arguments)


def test_task_names_depend_on_arguments():
    x = lazy()
    name = cdd.dropout(x, 0.5, seed=2).name
    assert cdd.dropout(x, np.float64(0.5), seed=2, call=0).name == name
    others = [
        cdd.dropout(x, 0.5, seed=3),
        cdd.dropout(x, 0.5, seed=2, call=1),
        cdd.dropout(x, 0.4, seed=2),
        cdd.dropout(x, 0.5, seed=2, broadcast_dims=0),
        cdd.dropout(x.rechunk(5), 0.5, seed=2),
        cdd.dropout(x + 1, 0.5, seed=2),
    ]
    assert len({name, *(y.name for y in others)}) == 1 + len(others)


def test_task_names_are_the_same_in_all_processes():
    script = (
        "import dask.array as da, cdropout as cd, cdropout.dask\n"
        "y = cdropout.dask.dropout(da.ones((9, 9), chunks=4), 0.1, seed=5, broadcast_dims=1)\n"
        "print(y.name, cd.Mask(9, 0.1, 5).to_dask(2).name)"
    )
    status, output, errors = run(script)
    assert status == 0 and output, errors
    assert run(script) == (status, output, errors)


def test_rng_provides_one_call_number_when_the_graph_is_built():
    x, generator = lazy(), cd.Generator(4)
    generator.state = {"seed": 4, "calls": 3, "spawned": 0}
    y = cdd.dropout(x, 0.5, rng=generator)
    assert generator.calls == 4
    np.testing.assert_array_equal(y.compute(), reference.dropout(X, 0.5, 4, 3))
    np.testing.assert_array_equal(y.compute(), y.compute())
    assert generator.calls == 4  # computing the result uses no call number
    for p, array in [(0, x), (1, x), (0.5, lazy(X[:0]))]:
        cdd.dropout(array, p, rng=generator)
        assert generator.calls == 4  # nothing is random in these calls
    cd.manual_seed(9)
    _, first = cdd.dropout(x, return_mask=True)
    _, second = cdd.dropout(x, return_mask=True)
    assert (first, second) == (cd.Mask(SHAPE, 0.5, 9, 0), cd.Mask(SHAPE, 0.5, 9, 1))
    for make_rng in (np.random.SeedSequence, np.random.default_rng, int):
        _, expected = cd.dropout(X, 0.5, rng=make_rng(7), return_mask=True)
        assert cdd.dropout(x, 0.5, rng=make_rng(7), return_mask=True)[1] == expected


# ---- mask= --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [60, 7, (20, 47, 2)], ids=str)
def test_mask_argument_determines_the_result(chunks):
    large_mask = cd.Generator(4).next_mask((120, 50, 6), 0.3, broadcast_dims=1, scale=5)
    for mask in (cd.Generator(4).next_mask(SHAPE, 0.3), large_mask[119:59:-1, 2:49, :5]):
        y, returned_mask = cdd.dropout(
            lazy(chunks=chunks), 0.5, mask=mask, return_mask=True, broadcast_dims=[]
        )
        assert returned_mask is mask
        np.testing.assert_array_equal(y.compute(), mask.apply(X))
        assert cdd.dropout(lazy(), mask=mask, p=0.3).name == cdd.dropout(lazy(), mask=mask).name
    x = lazy()
    for ignored in ({"rng": 1}, {"seed": 1, "call": 3}, {"call": 3}, {"seed": 1, "rng": 2}):
        assert cdd.dropout(x, training=False, mask=mask, **ignored) is x
    assert cdd.dropout(x, mask=cd.Mask(SHAPE, 0)) is x


# ---- errors -------------------------------------------------------------------------------------

UNKNOWN_SIZE = (
    "x has chunks of unknown size (its shape is (nan, 47, 5)): call x.compute_chunk_sizes()"
)
MASK = cd.Mask(SHAPE, 0.3)
ERRORS = {
    "ndarray": (lambda x: cdd.dropout(X), TypeError, "x has to be a Dask array, but got ndarray"),
    "delayed": (
        lambda x: cdd.dropout(dask.delayed(X)),
        TypeError,
        "x has to be a Dask array, but got Delayed",
    ),
    "integers": (
        lambda x: cdd.dropout(x.astype(int), 0.5),
        TypeError,
        f"x has to be an array of {FLOATS_TEXT}, but got int64",
    ),
    "integers, p = 0": (
        lambda x: cdd.dropout(x.astype(int), 0),
        TypeError,
        f"x has to be an array of {FLOATS_TEXT}, but got int64",
    ),
    "masked": (
        lambda x: cdd.dropout(x.map_blocks(np.ma.asarray), 0.5),
        TypeError,
        "x is a masked array, and its mask would be lost; pass x.data or x.filled()",
    ),
    "unknown": (lambda x: cdd.dropout(x[x[:, 0, 0] > 0], 0.5), ValueError, UNKNOWN_SIZE),
    "p": (
        lambda x: cdd.dropout(x, 1.5),
        ValueError,
        "dropout probability has to be between 0 and 1, but got 1.5",
    ),
    "p in evaluation": (
        lambda x: cdd.dropout(x, "0.5", False),
        TypeError,
        "p has to be a number between 0 and 1, but got str",
    ),
    "seed": (lambda x: cdd.dropout(x, seed=1.0), TypeError, "seed has to be an int, but got float"),
    "seed and rng": (
        lambda x: cdd.dropout(x, seed=1, rng=2),
        ValueError,
        "seed=1 determines the mask: it excludes rng",
    ),
    "call": (
        lambda x: cdd.dropout(x, call=1),
        ValueError,
        "call=1 needs seed, since both determine the mask",
    ),
    **{
        f"mask and {name}": (
            lambda x, name=name, value=value: cdd.dropout(x, mask=MASK, **{name: value}),
            ValueError,
            f"mask= cannot be combined with {name}",
        )
        for name, value in [("seed", 1), ("call", 1), ("rng", 1), ("broadcast_dims", 0)]
    },
    "mask and p": (
        lambda x: cdd.dropout(x, 0.4, mask=MASK),
        ValueError,
        "the mask has p=0.3, but p=0.4 was given",
    ),
    "mask of another shape": (
        lambda x: cdd.dropout(x[1:], mask=MASK),
        ValueError,
        "the mask has the shape (60, 47, 5), but x has (59, 47, 5)",
    ),
    "no mask": (
        lambda x: cdd.dropout(x, mask=X),
        TypeError,
        "mask has to be a Mask, but got ndarray",
    ),
    "rng": (lambda x: cdd.dropout(x, rng="1"), TypeError, "rng has to be None, a cdropout.Gener"),
    "axes": (
        lambda x: cdd.dropout(x, broadcast_dims=3),
        ValueError,
        "broadcast_dims has to be in [-3, 3) for 3 dimensions, but got 3",
    ),
    "mask": (
        lambda x: cdd.dropout_backward(x, X),
        TypeError,
        "mask has to be a Mask, but got ndarray",
    ),
    "shape": (
        lambda x: cdd.dropout_backward(x, cd.Mask((60, 47), 0.5)),
        ValueError,
        "the mask has the shape (60, 47), but gy has (60, 47, 5)",
    ),
    "gy": (
        lambda x: cdd.dropout_backward(X, MASK),
        TypeError,
        "gy has to be a Dask array, but got ndarray",
    ),
    "gy of unknown size": (
        lambda x: cdd.dropout_backward(x[x[:, 0, 0] > 0], MASK),
        ValueError,
        "gy has chunks of unknown size (its shape is (nan, 47, 5)): call gy.compute_chunk_sizes()",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_raised_when_the_graph_is_built(case):
    call, error, message = ERRORS[case]
    before = cd.default_generator.state
    with pytest.raises(error, match=re.escape(message)):
        call(lazy())
    assert cd.default_generator.state == before


CALLS = {"x": cdd.dropout, "gy": lambda gy: cdd.dropout_backward(gy, MASK)}


@pytest.mark.parametrize("kind", ["DataFrame", "Series"])
def test_dask_dataframe_raises_with_the_conversion(kind):
    reason = "needs Dask's DataFrame: pip install 'dask[dataframe]'"
    dataframe = pytest.importorskip("dask.dataframe", reason=reason, exc_type=ImportError)
    frame = dataframe.from_array(X[0])
    x = frame if kind == "DataFrame" else frame[0]
    message = "{0} has to be a Dask array, but got {1}: pass {0}.to_dask_array(lengths=True)"
    for name, call in CALLS.items():
        with pytest.raises(TypeError, match=re.escape(message.format(name, kind))):
            call(x)
    y = cdd.dropout(x.to_dask_array(lengths=True), 0.3, seed=1).compute()
    np.testing.assert_array_equal(y, cd.dropout(x.compute().to_numpy(), 0.3, rng=1))


def test_xarray_raises_with_the_conversion():
    x = import_or_skip("xarray").DataArray(lazy())
    for name, call in CALLS.items():
        message = f"^{name} has to be a Dask array, but got DataArray: pass {name}.data$"
        with pytest.raises(TypeError, match=message):
            call(x)
    assert_same_bits(cdd.dropout(x.data, 0.3, seed=1).compute(), cd.dropout(X, 0.3, rng=1))
    with pytest.raises(TypeError, match="but got DataArray$"):
        cdd.dropout(x.compute())


def test_dropout_after_compute_chunk_sizes():
    x = lazy(chunks=(20, 47, 5))
    x = x[x[:, 0, 0] > 0]
    y = cdd.dropout(x.compute_chunk_sizes(), 0.5, seed=1).compute()
    np.testing.assert_array_equal(y, cd.dropout(X[X[:, 0, 0] > 0], rng=1))


def test_chunk_too_large_for_memory_raises_memory_error():
    huge = da.ones(2**50, chunks=-1, dtype=np.float32)  # one chunk, whose strides are 0
    with pytest.raises(MemoryError):
        cdd.dropout(huge, 0.5, seed=1).compute()
    test_result_equals_numpy_for_each_dtype_and_p(np.float32, 0.5)


def test_calls_without_dask_raise_with_the_install_command():
    script = (
        "import sys, importlib; sys.modules['dask'] = None; import cdropout\n"
        "calls = cdropout.Mask(3, 0.5).to_dask, lambda: importlib.import_module('cdropout.dask')\n"
        "for call in calls:\n"
        "    try:\n"
        "        call()\n"
        "    except ImportError as error:\n"
        "        print(error)"
    )
    _, output, _ = run(script)
    message = "cdropout.dask needs Dask: run `pip install 'cdropout[dask]'`"
    assert output.splitlines() == [message] * 2


@pytest.mark.slow
def test_xarray_example_prints_identical_results():
    import_or_skip("xarray")
    output = run_example("xarray_dropout.py")
    assert output.count("identical to NumPy's result: True") == 3
    dropped = int(re.search(r"whole days: (\d+) of 365", output)[1])
    assert dropped == 365 - np.count_nonzero(cd.Mask(365, 0.1, 7))
