"""Drop values of an xarray of Dask chunks: run `python examples/xarray_dropout.py`.

It needs `pip install xarray 'dask[array]'`. Names, coordinates and chunks stay; the values are
those of the same dropout in memory, to the bit; whole days can be dropped by naming what they span.
"""

import sys

import numpy as np

import cdropout


def drop(x, p, seed, shared=()):
    """Return x with dropout; along the dimensions named in `shared` one draw is made."""
    axes = tuple(x.get_axis_num(name) for name in shared)
    return xarray.apply_ufunc(
        dask_dropout,
        x,
        kwargs={"p": p, "seed": seed, "broadcast_dims": axes},
        dask="allowed",
        keep_attrs=True,
    )


def main():
    """Print what is dropped, and check it against the result in memory."""
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
        y = drop(temperature.chunk(time=days), 0.1, seed=7)
        same = np.array_equal(y.values, expected)
        print(
            f"chunks of {days:3} days: {y.data.npartitions:2} chunks, {y.attrs['units']},", end=" "
        )
        print(f"{100 * float((y == 0).mean()):.3f} % dropped, as in memory to the bit: {same}")
    y = drop(temperature.chunk(time=31), 0.1, seed=7, shared=("latitude", "longitude"))
    gone = (y == 0).all(("latitude", "longitude")).compute()
    print(f"whole days: {int(gone.sum())} of {gone.size} dropped, the first of them", end=" ")
    print(str(y.time[gone].values[0])[:10])


if __name__ == "__main__":
    try:
        import xarray

        from cdropout.dask import dropout as dask_dropout
    except ImportError as error:
        sys.exit(f"It needs more, pip install xarray 'dask[array]': {error}")
    main()
