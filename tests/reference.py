"""Reference implementation: mask stream version 1 and the functions that use it, in Python.

The results of this file are correct by definition. `keep_one` specifies one element, with
Python integers. `keep` runs the loop of this specification for many blocks at once, with NumPy.
Functions "for ints and arrays" take Python integers in [0, 2**64) or arrays of uint64, and return
values of the same type.

The recorded hashes change only with a new version of the stream. The following command writes the
file of recorded hashes:

    python tests/reference.py --record cdropout/stream_v1.json
"""

import argparse
import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np

MASK64 = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
BLOCK = 8192  # elements per block; the lanes are seeded once per block
GROUP = 512  # elements that the lanes draw together, 64 per lane
LANES = 8
ROUNDS = 12  # maximum number of outputs per lane and group
HALVES = {"float16": (5, 10), "bfloat16": (8, 7)}  # exponent bits, mantissa bits


# ---- the generator ----------------------------------------------------------------------------


def mix(z):
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood 2014), for ints and arrays.

    z may also be an int outside of [0, 2**64), which is reduced modulo 2**64.
    """
    z = z & MASK64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK64
    return z ^ (z >> 31)


def rotate_left(x, count):
    """Return the 64 bits of x rotated left by `count`, for ints and arrays."""
    return (x << count) & MASK64 | x >> (64 - count)


def xoroshiro128pp(s0, s1):
    """Advance xoroshiro128++ (Blackman and Vigna 2021) by one step, for ints and arrays.

    Returns
    -------
    output, s0, s1 : 64 random bits, and the new state.
    """
    output = (rotate_left((s0 + s1) & MASK64, 17) + s0) & MASK64
    s1 = s1 ^ s0
    return output, rotate_left(s0, 49) ^ s1 ^ ((s1 << 21) & MASK64), rotate_left(s1, 28)


# ---- once per mask ----------------------------------------------------------------------------


def mask_constants(seed, call):
    """Return the constants of a mask: K and c seed the lanes, and tie seeds the hash.

    Parameters
    ----------
    seed : int in [-2**63, 2**64)
    call : int in [0, 2**64)
    """
    seed, call = int(seed), int(call)  # NumPy integers would overflow
    if not -(2**63) <= seed < 2**64 or not 0 <= call < 2**64:
        raise ValueError(f"expected 64 bits of seed and of call, but got {seed} and {call}")
    key = mix(seed + GAMMA)
    K = mix(key ^ (call * 0xD1342543DE82EF95))
    c = (key + call + 0xA0761D6478BD642F) & MASK64
    c = c or 1  # s0 and s1 must not both be 0
    return K, c, mix(K + c)


def threshold(p):
    """Return T, which is exactly floor(p * 2**64), for 0 < p < 1."""
    if not 0 < p < 1:
        raise ValueError(f"a threshold needs 0 < p < 1, but got {p}")
    return int(Fraction(float(p)) * 2**64)


def rounds(T):
    """Return R, the number of outputs that each lane draws per group.

    The bits of T below its lowest set bit do not affect which elements are dropped. If T is 0, R is
    12, and no element is dropped.
    """
    lowest = (T & -T).bit_length() - 1
    return min(ROUNDS, 64 - lowest)


def lane_state(K, c, block, lane):
    """Return the state (s0, s1) of a lane at the start of a block, for ints and arrays."""
    s0 = mix(K + GAMMA * (LANES * block + lane + 1))
    return s0, mix(s0 + c)


def spawn_seed(seed, i):
    """Return the seed of child number i, counted from 0, of a generator with this seed."""
    return mix(mix(seed + 2 * GAMMA) + GAMMA * (i + 1))


# ---- one element ------------------------------------------------------------------------------


def keep_one(seed, call, p, element, step=xoroshiro128pp):
    """Compute with Python integers whether the mask keeps this element.

    Each element has a random 64-bit number. Its upper R bits come from R outputs of the element's
    lane, and a hash gives the other bits. The element is dropped if the number is less than T.
    """
    if p in (0, 1):
        return p == 0
    element = int(element)
    K, c, tie = mask_constants(seed, call)
    T = threshold(p)
    block, in_block = divmod(element, BLOCK)
    group, in_group = divmod(in_block, GROUP)
    lane, bit = divmod(in_group, 64)
    s0, s1 = lane_state(K, c, block, lane)
    for _ in range(rounds(T) * group):
        _, s0, s1 = step(s0, s1)
    for j in range(rounds(T)):
        output, s0, s1 = step(s0, s1)
        random_bit, threshold_bit = (output >> bit) & 1, (T >> (63 - j)) & 1
        if random_bit != threshold_bit:
            return random_bit > threshold_bit
    return mix(tie + GAMMA * (element + 1)) >= (T << ROUNDS) & MASK64


# ---- many elements ----------------------------------------------------------------------------


def draw_group(s0, s1, T, step):
    """Draw the bits of one group from a lane, for ints and arrays.

    Returns
    -------
    drop, undecided, s0, s1 : the bits that are set for dropped elements, the bits that are set for
        undecided elements, and the new state of the lane.
    """
    drop = s0 & 0  # 0, or an array of zeros if s0 is an array
    undecided = drop | MASK64
    for j in range(rounds(T)):
        output, s0, s1 = step(s0, s1)
        if (T >> (63 - j)) & 1:
            drop = drop | (undecided & ~output)
            undecided = undecided & output
        else:
            undecided = undecided & ~output
    return drop, undecided, s0, s1


def unpack_bits(packed):
    """Return the bits of an array of uint64 as bools in C order, least significant bit first."""
    octets = np.ascontiguousarray(packed, dtype="<u8").view(np.uint8)
    return np.unpackbits(octets.reshape(-1), bitorder="little").astype(bool)


def draw(seed, call, p, start, n, step=xoroshiro128pp):
    """Return which elements the lanes drop, and which elements the lanes leave undecided.

    Draw n elements, beginning with element `start`. n must be positive, and 0 < p < 1.

    Returns
    -------
    drop, undecided : bool [n]; `drop` is False for undecided elements, which the hash decides.
    """
    K, c, _ = mask_constants(seed, call)
    T, start = threshold(p), int(start)
    first, last = start // BLOCK, (start + n - 1) // BLOCK
    block = np.arange(first, last + 1, dtype=np.uint64)[:, None]
    s0, s1 = lane_state(K, c, block, np.arange(LANES, dtype=np.uint64))
    groups = BLOCK // GROUP
    if first == last:  # the groups after the last element are not needed
        groups = (start + n - 1) % BLOCK // GROUP + 1
    drawn = []
    for _ in range(groups):
        drop, undecided, s0, s1 = draw_group(s0, s1, T, step)
        drawn.append((drop, undecided))
    # Reorder [groups, 2, blocks, lanes] to [2, blocks, groups, lanes], the order of the elements.
    packed = np.array(drawn, dtype=np.uint64).transpose(1, 2, 0, 3)
    skip = start - first * BLOCK
    return tuple(unpack_bits(part)[skip : skip + n] for part in packed)


def keep(seed, call, p, start, n, step=xoroshiro128pp):
    """Return which of the n elements from `start` on are kept.

    Parameters
    ----------
    seed : int in [-2**63, 2**64); a negative seed gives the same mask as seed + 2**64
    call : int in [0, 2**64)
    p : float in [0, 1], the probability of dropping an element
    start, n : int, 0 <= start < 2**63
    step : callable
        The function that advances a lane, (s0, s1) -> (output, s0, s1). Tests of randomness
        replace the default.

    Returns
    -------
    bool [n]
    """
    if n == 0 or p in (0, 1):
        return np.full(n, p == 0)
    drop, undecided = draw(seed, call, p, start, n, step)
    tied = np.flatnonzero(undecided)
    element = tied.astype(np.uint64) + np.uint64(start)
    _, _, tie = mask_constants(seed, call)
    rest = (threshold(p) << ROUNDS) & MASK64
    drop[tied] = mix(tie + GAMMA * (element + np.uint64(1))) < rest
    return ~drop


def bits(seed, call, p, start, n):
    """Return the result of `keep` as uint8 [ceil(n / 8)], lowest bit first, padded with zeros."""
    return np.packbits(keep(seed, call, p, start, n), bitorder="little")


def window(shape, index, start=0):
    """Return the positions (uint64) of the elements that a basic index selects from a mask.

    `shape` is the shape of the mask, and `start` is the position of its first element.
    """
    positions = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(start)
    return np.asarray(positions.reshape(shape)[index])


def broadcast_keep(shape, p, seed, call, broadcast_dims=()):
    """Return which elements a mask with broadcast axes keeps: bool [shape].

    All elements along `broadcast_dims` use the same bit: the drawn mask has length 1 along these
    axes.
    """
    axes = {range(len(shape))[axis] for axis in broadcast_dims}
    drawn_shape = [1 if axis in axes else length for axis, length in enumerate(shape)]
    kept = keep(seed, call, p, 0, math.prod(drawn_shape))
    return np.broadcast_to(kept.reshape(drawn_shape), shape)


# ---- the half types, in integers --------------------------------------------------------------


def widen(bits16, name):
    """Convert float16 or bfloat16 (bits as uint16) exactly to float32 (bits as uint32)."""
    b = np.asarray(bits16).astype(np.uint32)
    if name == "bfloat16":
        return b << 16
    sign, exponent, fraction = (b & 0x8000) << 16, (b >> 10) & 31, b & 0x3FF
    normal = ((exponent + 112) << 23) | (fraction << 13)  # the biases 127 and 15 differ by 112
    special = 0x7F800000 | (fraction << 13)  # infinity and NaN
    subnormal = (fraction.astype(np.float32) * np.float32(2**-24)).view(np.uint32)
    return sign | np.where(exponent == 31, special, np.where(exponent == 0, subnormal, normal))


def round_to_half(bits32, name):
    """Round float32 (bits as uint32) to float16 or bfloat16 (bits as uint16).

    Numbers are rounded to nearest, ties to even. Numbers that are too large become infinite.
    Subnormal results are not flushed to 0. A NaN becomes quiet, and keeps its sign and upper
    payload bits.
    """
    exponent_bits, mantissa_bits = HALVES[name]
    dropped = 23 - mantissa_bits
    b = np.asarray(bits32).astype(np.int64)
    sign, magnitude = (b >> 31) << 15, b & 0x7FFFFFFF
    # value = significand * 2**(exponent - 150); subnormals have the exponent 1
    exponent = np.maximum(magnitude >> 23, 1)
    significand = np.where(magnitude >> 23 == 0, magnitude, (magnitude & 0x7FFFFF) + (1 << 23))
    target = exponent - 128 + (1 << (exponent_bits - 1))  # exponent with the bias of the half type
    shift = dropped + np.clip(1 - target, 0, 24)  # any shift by 25 or more gives 0
    quotient, remainder = significand >> shift, significand & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    quotient += (remainder > half) | ((remainder == half) & (quotient & 1 == 1))
    # The leading bit of a normal quotient, or a carry into this bit, adds one to the exponent.
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    number = np.minimum(quotient + ((np.maximum(target, 1) - 1) << mantissa_bits), infinity)
    payload = (magnitude >> dropped) & ((1 << mantissa_bits) - 1)
    nan = infinity | (1 << (mantissa_bits - 1)) | payload
    return (sign | np.where(magnitude > 0x7F800000, nan, number)).astype(np.uint16)


# ---- dropout ----------------------------------------------------------------------------------


def computation_dtype(dtype):
    """Return the dtype of products before rounding: float64 for float64, otherwise float32."""
    name = np.dtype(dtype).name
    if name not in ("float32", "float64", *HALVES):
        raise TypeError(f"expected float16, bfloat16, float32 or float64, but got {name}")
    return np.float64 if name == "float64" else np.float32


def scale(p, dtype):
    """Return 1 / (1 - p), computed in double and rounded to the computation dtype; 0 for p = 1."""
    return computation_dtype(dtype)(0.0 if p == 1 else 1.0 / (1.0 - float(p)))


def apply(x, keep, p):
    """Return x * scale for kept elements, and +0.0 for dropped ones.

    The product is computed in the computation dtype, and then rounded to the dtype of x.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, any shape and strides
    keep : array of bool with as many elements as x, in C order
    p : float in [0, 1]

    Returns
    -------
    A new array with the shape and dtype of x, in C order.
    """
    x = np.asarray(x)
    flat, name = x.ravel(order="C"), x.dtype.name
    wide = widen(flat.view(np.uint16), name).view(np.float32) if name in HALVES else flat
    with np.errstate(all="ignore"):  # overflow and NaN are valid results
        y = wide * scale(p, x.dtype)
    if name in HALVES:
        y = round_to_half(y.view(np.uint32), name).view(x.dtype)
    return np.where(np.reshape(keep, flat.shape), y, np.zeros(1, x.dtype)).reshape(x.shape)


def dropout(x, p, seed, call, broadcast_dims=()):
    """Return the result of dropout of x in training; for p = 0, return a copy of x."""
    x = np.array(x, order="C")
    if p == 0:
        return x
    return apply(x, broadcast_keep(x.shape, p, seed, call, broadcast_dims), p)


def dropout_backward(g, p, seed, call, broadcast_dims=()):
    """Return the gradient of `dropout` with respect to x; g is the gradient of its result."""
    return dropout(g, p, seed, call, broadcast_dims)


# ---- the recorded hashes ----------------------------------------------------------------------


RECORDED = {
    "seed": [0, 1, 42, 2**63, MASK64, -1, -(2**63), 0x0123456789ABCDEF, 0xFEDCBA9876543210],
    "call": [0, 1, 2**32, MASK64, 7, 0x9D2C5680EFC60000],
    "p": [0.1, 0.5, 0.25, 0.75, 0.3, 0.0625, 0.9, 0.001, 1 / 3, 5e-324, 2.0**-64, 2.0**-53,
          1 - 2.0**-53, 0.5 - 2.0**-54, 0.5 + 2.0**-53, 2.0**-12, 2.0**-13, 1 - 2.0**-12, 0.999],
    "start": [0, 1, 7, 63, 64, 511, 512, 8191, 8192, 100003,
              2**31 - 5, 2**32 - 3, 2**40 + 17, 2**62 + 1],
    "n": [1, 8, 63, 64, 65, 511, 512, 513, 1000, 8192, 8193, 20000],
}  # fmt: skip
# For these values of p, the hash drops some elements of each long case and keeps some.
P_OF_LONG_CASES = [
    0.1, 0.3, 1 / 3, 0.999, 2.0**-13, 1 - 2.0**-13,
    0.5 - 2.0**-13, 0.5 + 2.0**-13, 0.25 + 2.0**-14, 0.75 - 2.0**-14,
]  # fmt: skip


def recorded_cases():
    """Return 200 cases in which each value of RECORDED occurs, and 20 long cases."""
    columns = []
    for i, values in enumerate(RECORDED.values()):
        order = sorted(range(200), key=lambda row, i=i: mix(1000 * i + row))  # a fixed shuffle
        columns.append([values[row % len(values)] for row in order])
    cases = [dict(zip(RECORDED, row, strict=True)) for row in zip(*columns, strict=True)]
    for i, p in enumerate(P_OF_LONG_CASES):
        cases.append({"seed": i, "call": 3, "p": p, "start": 0, "n": 100_000})
        cases.append({"seed": -2 - i, "call": 2**40 + i, "p": p, "start": 2**33 - 5, "n": 123_457})
    return cases


def digest(case):
    """Return the SHA-256 digest of the packed bits for a case, in hexadecimal."""
    return hashlib.sha256(bits(**case).tobytes()).hexdigest()


def record(path):
    """Write the recorded hashes as JSON, one case per line."""
    lines = [
        json.dumps({**case, "p": float(case["p"]).hex(), "sha256": digest(case)})
        for case in recorded_cases()
    ]
    Path(path).write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="ascii")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Reference implementation of cdropout.")
    parser.add_argument(
        "--record", metavar="PATH", required=True, help="write the recorded hashes to this file"
    )
    record(parser.parse_args().record)
