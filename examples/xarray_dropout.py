"""Apply dropout to an xarray.DataArray with Dask chunks.

Run `python examples/xarray_dropout.py`. The program requires `pip install xarray 'dask[array]'`.
The results have the dimensions, coordinates and chunks of the input, and are bit-identical to
dropout of the NumPy array. The last call drops whole days: all elements of a day share one draw.
"""

import sys

import numpy as np

import cdropout


def dropout(x, p, seed, broadcast_dims=()):
    """Apply dropout; all elements along the dimensions in `broadcast_dims` share one draw."""
    axes = tuple(x.get_axis_num(name) for name in broadcast_dims)
    return xarray.apply_ufunc(
        dask_dropout,
        x,
        kwargs={"p": p, "seed": seed, "broadcast_dims": axes},
        dask="allowed",
        keep_attrs=True,
    )


def main():
    """Apply dropout with several chunk sizes and compare the results with that of NumPy."""
    values = np.random.default_rng(0).normal(288, 5, (365, 60, 120)).astype(np.float32)
    dates = np.arange("2025-01-01", "2026-01-01", dtype="datetime64[D]")
    temperature = xarray.DataArray(
        values,
        dims=("time", "latitude", "longitude"),
        coords={"time": dates},
        attrs={"units": "K"},
    )
    expected = cdropout.dropout(values, 0.1, rng=7)
    for days in (365, 31, 7):
        y = dropout(temperature.chunk(time=days), 0.1, seed=7)
        same = np.array_equal(y.values, expected)
        print(
            f"chunks of {days:3} days: {y.data.npartitions:2} chunks, {y.attrs['units']},", end=" "
        )
        print(f"{100 * float((y == 0).mean()):.3f} % dropped, identical to NumPy's result: {same}")
    spatial = ("latitude", "longitude")
    y = dropout(temperature.chunk(time=31), 0.1, seed=7, broadcast_dims=spatial)
    dropped = (y == 0).all(spatial).compute()
    print(f"whole days: {int(dropped.sum())} of {dropped.size} dropped, the first on", end=" ")
    print(str(y.time[dropped].values[0])[:10])


if __name__ == "__main__":
    try:
        import xarray

        from cdropout.dask import dropout as dask_dropout
    except ImportError as error:
        sys.exit(f"a package is missing, run pip install xarray 'dask[array]': {error}")
    main()
