"""The slow twin: mask stream version 1 and the functions over it, in plain Python and NumPy.

What this file says is what is right. `keep_one` is the specification for one element, in Python
integers; `keep` is the specification's own loop, over many blocks at once. Functions written
"for ints and arrays" take Python integers in [0, 2**64) or uint64 arrays, and give the same kind.

    python tests/reference.py --record cdropout/stream_v1.json

writes the recorded hashes anew. Do that only for a new stream version.
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
BLOCK = 8192  # elements that share one seeding
GROUP = 512  # elements drawn together, one word a lane
LANES = 8
ROUNDS = 12  # at most so many words of a lane are compared with the threshold
HALVES = {"float16": (5, 10), "bfloat16": (8, 7)}  # bits of exponent, of mantissa


# ---- the generator ----------------------------------------------------------------------------


def mix(z):
    """Return the finaliser of SplitMix64 (Steele, Lea and Flood 2014), for ints and arrays."""
    z = z & MASK64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK64
    return z ^ (z >> 31)


def rotate_left(x, count):
    """Return x rotated left by `count` of its 64 bits, for ints and arrays."""
    return (x << count) & MASK64 | x >> (64 - count)


def xoroshiro128pp(s0, s1):
    """Step xoroshiro128++ (Blackman and Vigna 2021) once, for ints and arrays.

    Returns
    -------
    word, s0, s1 : the 64 bits drawn, and the state after them.
    """
    word = (rotate_left((s0 + s1) & MASK64, 17) + s0) & MASK64
    s1 = s1 ^ s0
    return word, rotate_left(s0, 49) ^ s1 ^ ((s1 << 21) & MASK64), rotate_left(s1, 28)


# ---- once a mask ------------------------------------------------------------------------------


def mask_constants(seed, call):
    """Return (K, c, tie) of the mask with this seed in [-2**63, 2**64) and call in [0, 2**64)."""
    seed, call = int(seed), int(call)  # NumPy's own integers would overflow
    if not -(2**63) <= seed < 2**64 or not 0 <= call < 2**64:
        raise ValueError(f"expected 64 bits of seed and of call, but got {seed} and {call}")
    key = mix(seed + GAMMA)
    K = mix(key ^ (call * 0xD1342543DE82EF95))
    c = (key + call + 0xA0761D6478BD642F) & MASK64
    c = c or 1  # s0 and s1 may not both be 0
    return K, c, mix(K + c)


def threshold(p):
    """Return T = floor(p * 2**64), exactly, for 0 < p < 1."""
    if not 0 < p < 1:
        raise ValueError(f"a threshold needs 0 < p < 1, but got {p}")
    return int(Fraction(float(p)) * 2**64)


def rounds(T):
    """Return R, how many words a group draws from each lane.

    Below the lowest set bit of T nothing more is decided. T = 0 has no such bit: all 12 rounds and
    the hash then compare with 0, which drops nothing.
    """
    lowest = (T & -T).bit_length() - 1
    return min(ROUNDS, 64 - lowest)


def lane_state(K, c, block, lane):
    """Return (s0, s1) with which this lane of this block starts, for ints and arrays."""
    s0 = mix(K + GAMMA * (LANES * block + lane + 1))
    return s0, mix(s0 + c)


def spawn_seed(seed, i):
    """Return the seed of a generator's i-th child; i counts from 0 over the parent's life."""
    return mix(mix(seed + 2 * GAMMA) + GAMMA * (i + 1))


# ---- one element ------------------------------------------------------------------------------


def keep_one(seed, call, p, element, step=xoroshiro128pp):
    """Return whether the mask keeps this one element, in plain integers.

    The lane's next R words, at this element's bit, are the first bits of a number from 0 to
    2**64 - 1, and the hash gives the rest of it. The element is dropped if that is less than T.
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
        word, s0, s1 = step(s0, s1)
        drawn, wanted = (word >> bit) & 1, (T >> (63 - j)) & 1
        if drawn != wanted:
            return drawn > wanted
    return mix(tie + GAMMA * (element + 1)) >= (T << ROUNDS) & MASK64


# ---- many elements ----------------------------------------------------------------------------


def draw_group(s0, s1, T, step):
    """Draw one group's bits of each lane, for ints and arrays.

    Returns
    -------
    drop, undecided, s0, s1 : the bits dropped, those that the hash must decide, the new state.
    """
    drop = s0 & 0  # not a plain 0: an array of them, if the state is arrays
    undecided = drop | MASK64
    for j in range(rounds(T)):
        word, s0, s1 = step(s0, s1)
        if (T >> (63 - j)) & 1:
            drop = drop | (undecided & ~word)
            undecided = undecided & word
        else:
            undecided = undecided & ~word
    return drop, undecided, s0, s1


def unpack_words(words):
    """Return the bits of uint64 words as bool, least significant bit first, in C order."""
    octets = np.ascontiguousarray(words, dtype="<u8").view(np.uint8)
    return np.unpackbits(octets.reshape(-1), bitorder="little").astype(bool)


def draw(seed, call, p, start, n, step=xoroshiro128pp):
    """Return what the lanes decide for n > 0 elements from `start` on, for 0 < p < 1.

    Returns
    -------
    drop, undecided : bool [n]; where `undecided`, `drop` is False and the hash has its say.
    """
    K, c, _ = mask_constants(seed, call)
    T, start = threshold(p), int(start)
    first, last = start // BLOCK, (start + n - 1) // BLOCK
    block = np.arange(first, last + 1, dtype=np.uint64)[:, None]
    s0, s1 = lane_state(K, c, block, np.arange(LANES, dtype=np.uint64))
    groups = BLOCK // GROUP
    if first == last:  # a short range stops where it ends
        groups = (start + n - 1) % BLOCK // GROUP + 1
    drawn = []
    for _ in range(groups):
        drop, undecided, s0, s1 = draw_group(s0, s1, T, step)
        drawn.append((drop, undecided))
    # [groups, 2, blocks, lanes] to two arrays [blocks, groups, lanes]: the order of the elements
    words = np.array(drawn, dtype=np.uint64).transpose(1, 2, 0, 3)
    skip = start - first * BLOCK
    return tuple(unpack_words(part)[skip : skip + n] for part in words)


def keep(seed, call, p, start, n, step=xoroshiro128pp):
    """Return which of the mask's elements start .. start+n-1 are kept.

    Parameters
    ----------
    seed : int in [-2**63, 2**64), two's complement
    call : int in [0, 2**64)
    p : float in [0, 1], the probability of a drop
    start, n : int, 0 <= start < 2**63; nothing before the block of `start` is drawn
    step : the lane generator (s0, s1) -> (word, s0, s1), to put another into the same frame

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
    """Return `keep` packed to uint8 [ceil(n / 8)], least significant bit first, padded with 0."""
    return np.packbits(keep(seed, call, p, start, n), bitorder="little")


def window(shape, index, start=0):
    """Return the flat indices (uint64) of a basic-indexed window of a mask of this shape whose
    own first element has the flat index `start`.
    """
    whole = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(start)
    return np.asarray(whole.reshape(shape)[index])


def broadcast_keep(shape, p, seed, call, broadcast_dims=()):
    """Return bool [shape] in which one draw is shared along each axis of `broadcast_dims`.

    The mask that is drawn has length 1 there, and elements are counted in its C order.
    """
    shared = {range(len(shape))[axis] for axis in broadcast_dims}
    drawn = [1 if axis in shared else length for axis, length in enumerate(shape)]
    kept = keep(seed, call, p, 0, math.prod(drawn))
    return np.broadcast_to(kept.reshape(drawn), shape)


# ---- the half types, in integers --------------------------------------------------------------


def widen(bits16, name):
    """Return the float32 bits (uint32) of float16 or bfloat16 bits (uint16); always exact."""
    b = np.asarray(bits16).astype(np.uint32)
    if name == "bfloat16":
        return b << 16
    sign, exponent, fraction = (b & 0x8000) << 16, (b >> 10) & 31, b & 0x3FF
    normal = ((exponent + 112) << 23) | (fraction << 13)  # the exponents' biases are 127 and 15
    special = 0x7F800000 | (fraction << 13)  # infinity and NaN
    subnormal = (fraction.astype(np.float32) * np.float32(2**-24)).view(np.uint32)
    return sign | np.where(exponent == 31, special, np.where(exponent == 0, subnormal, normal))


def round_to_half(bits32, name):
    """Return the float16 or bfloat16 bits (uint16) of float32 bits (uint32).

    To nearest, ties to even; past the largest number to infinity; subnormals are kept. NaN stays
    NaN: it is made quiet, and keeps its sign and the upper bits of its payload.
    """
    exponent_bits, mantissa_bits = HALVES[name]
    dropped = 23 - mantissa_bits
    b = np.asarray(bits32).astype(np.int64)
    sign, magnitude = (b >> 31) << 15, b & 0x7FFFFFFF
    # value = significand * 2**(exponent - 150), for subnormals (of exponent 1) too
    exponent = np.maximum(magnitude >> 23, 1)
    significand = np.where(magnitude >> 23 == 0, magnitude, (magnitude & 0x7FFFFF) + (1 << 23))
    target = exponent - 128 + (1 << (exponent_bits - 1))  # the same exponent, the other bias
    shift = dropped + np.clip(1 - target, 0, 24)  # a shift of 25 already leaves nothing
    quotient, remainder = significand >> shift, significand & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    quotient += (remainder > half) | ((remainder == half) & (quotient & 1 == 1))
    # the leading bit of a normal quotient, or a carry into it, counts the exponent up by one
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    number = np.minimum(quotient + ((np.maximum(target, 1) - 1) << mantissa_bits), infinity)
    payload = (magnitude >> dropped) & ((1 << mantissa_bits) - 1)
    nan = infinity | (1 << (mantissa_bits - 1)) | payload
    return (sign | np.where(magnitude > 0x7F800000, nan, number)).astype(np.uint16)


# ---- dropout ----------------------------------------------------------------------------------


def computed_in(dtype):
    """Return the type that products are made in: float32, or float64 for float64."""
    name = np.dtype(dtype).name
    if name not in ("float32", "float64", *HALVES):
        raise TypeError(f"expected float16, bfloat16, float32 or float64, but got {name}")
    return np.float64 if name == "float64" else np.float32


def scale(p, dtype):
    """Return 1 / (1 - p) in double, rounded once to the type computed in; 0 for p = 1."""
    return computed_in(dtype)(0.0 if p == 1 else 1.0 / (1.0 - float(p)))


def apply(x, keep, p):
    """Return x * scale, rounded once, where kept, and +0.0 where dropped, whatever was there.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, any shape and strides
    keep : bool, as many elements as x, in x's C order
    p : float in [0, 1]

    Returns
    -------
    A new array of x's shape and type, in C order.
    """
    x = np.asarray(x)
    flat, name = x.ravel(order="C"), x.dtype.name
    factor = scale(p, x.dtype)
    wide = widen(flat.view(np.uint16), name).view(np.float32) if name in HALVES else flat
    with np.errstate(all="ignore"):  # overflow and NaN are answers here
        y = wide * factor
    if name in HALVES:
        y = round_to_half(y.view(np.uint32), name).view(x.dtype)
    return np.where(np.reshape(keep, flat.shape), y, np.zeros(1, x.dtype)).reshape(x.shape)


def dropout(x, p, seed, call, broadcast_dims=()):
    """Return dropout of x in training; p = 0 gives a copy of x, to the bit."""
    x = np.array(x, order="C")
    if p == 0:
        return x
    return apply(x, broadcast_keep(x.shape, p, seed, call, broadcast_dims), p)


def dropout_backward(g, p, seed, call, broadcast_dims=()):
    """Return the gradient with respect to x of `dropout`, where g is that of its result."""
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
# Of each of these, elements are left to the hash, which drops some and keeps others.
TIED = [0.1, 0.3, 1 / 3, 0.999, 2.0**-13, 1 - 2.0**-13,
        0.5 - 2.0**-13, 0.5 + 2.0**-13, 0.25 + 2.0**-14, 0.75 - 2.0**-14]  # fmt: skip


def recorded_cases():
    """Return the 220 cases: 200 in which every value has its turn, 20 long ones with ties."""
    columns = []
    for i, values in enumerate(RECORDED.values()):
        order = sorted(range(200), key=lambda row, i=i: mix(1000 * i + row))  # a fixed shuffle
        columns.append([values[place % len(values)] for place in order])
    cases = [dict(zip(RECORDED, row, strict=True)) for row in zip(*columns, strict=True)]
    for i, p in enumerate(TIED):
        cases.append({"seed": i, "call": 3, "p": p, "start": 0, "n": 100_000})
        cases.append({"seed": -2 - i, "call": 2**40 + i, "p": p, "start": 2**33 - 5, "n": 123_457})
    return cases


def digest(case):
    """Return the SHA-256, in hexadecimal, of the case's packed bits."""
    return hashlib.sha256(bits(**case).tobytes()).hexdigest()


def record(path):
    """Write the recorded hashes, one case a line so that differences read well."""
    lines = [
        json.dumps({**case, "p": float(case["p"]).hex(), "sha256": digest(case)})
        for case in recorded_cases()
    ]
    Path(path).write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="ascii")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The slow twin of cdropout.")
    parser.add_argument("--record", metavar="PATH", required=True, help="write the hashes there")
    record(parser.parse_args().record)
