"""cffi: apply a separate mask to each row of a float32 array; row i has call number i."""

from pathlib import Path

import cffi
import numpy as np

import cdropout

# cffi cannot parse the lines for C++, so that only the declarations between them are used.
header = Path(cdropout.get_include(), "cdropout.h").read_text()
ffi = cffi.FFI()
ffi.cdef(header.partition('extern "C" {\n#endif\n')[2].partition("#ifdef __cplusplus\n}")[0])

kernels = ffi.cast("const cdropout_table *", cdropout.get_table())
FLOAT32 = ffi.typeof("cdropout_dtype").relements["CDROPOUT_FLOAT32"]


def dropout_rows(x, y, p, seed):
    """Write dropout of each row of x to y. The kernel runs without the GIL."""
    mask = ffi.new("cdropout_mask *")
    source = ffi.from_buffer("float[]", x)
    target = ffi.from_buffer("float[]", y, require_writable=True)
    rows, columns = x.shape
    for row in range(rows):
        if kernels.mask_init(mask, seed, row, p):
            raise ValueError("p has to be between 0 and 1")
        offset = row * columns
        kernels.apply(FLOAT32, 0, source + offset, target + offset, columns, mask, 0)


if __name__ == "__main__":
    x = np.ones((3, 1000), np.float32)
    y = np.empty_like(x)
    dropout_rows(x, y, 0.1, seed=42)
    expected = [cdropout.Mask(1000, 0.1, seed=42, call=row).apply(x[row]) for row in range(3)]
    print("same as in Python:", np.array_equal(y, expected))
