"""Tests of the reference implementation: recorded hashes, published values, consistency."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from .. import reference
from ..helpers.arrays import DTYPES, assert_same_bits, every_dtype, every_half

RECORDS = json.loads((Path(__file__).parents[2] / "cdropout" / "stream_v1.json").read_text())
SIGMAS = 5.6  # the two-sided tail probability is 2e-8 for one rate, and about 1e-6 for all 40 rates


def all_values(dtype):
    """Return the 65,536 values of a 16-bit type."""
    return np.arange(65536, dtype=np.uint16).view(dtype)


# ---- the stream -------------------------------------------------------------------------------


def test_reference_reproduces_the_recorded_hashes(tmp_path):
    assert len(RECORDS) == 220
    reference.record(tmp_path / "records.json")
    assert json.loads((tmp_path / "records.json").read_text()) == RECORDS
    first = RECORDS[0]
    packed = reference.bits(first["seed"], first["call"], float.fromhex(first["p"]),
                            first["start"], first["n"])  # fmt: skip
    assert hashlib.sha256(packed.tobytes()).hexdigest() == first["sha256"]


def test_records_contain_exactly_the_declared_cases():
    declared = {(c["seed"], c["call"], float(c["p"]).hex(), c["start"], c["n"])
                for c in reference.recorded_cases()}  # fmt: skip
    recorded = {(c["seed"], c["call"], c["p"], c["start"], c["n"]) for c in RECORDS}
    assert recorded == declared
    for name, values in reference.RECORDED.items():
        values = [float(value).hex() for value in values] if name == "p" else values
        assert set(values) <= {case[name] for case in RECORDS}


def test_the_hash_drops_and_keeps_elements_in_the_long_cases():
    long_cases = [case for case in reference.recorded_cases() if case["n"] >= 100_000]
    assert len(long_cases) == 20
    for case in long_cases:
        drop, undecided = reference.draw(**case)
        kept = reference.keep(**case)
        assert not np.any(drop & undecided)
        assert np.any(kept[undecided]) and not np.all(kept[undecided]), case
        np.testing.assert_array_equal(kept[~undecided], ~drop[~undecided])


def test_mix_is_the_finalizer_of_splitmix64():
    # These are the first outputs of the C program splitmix64.c for the seed 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423,
                 4593380528125082431, 16408922859458223821]  # fmt: skip
    outputs = [reference.mix(1234567 + reference.GAMMA * (i + 1)) for i in range(5)]
    assert outputs == published


def test_the_lane_generator_is_xoroshiro128pp():
    # The authors' C program returns these outputs from the state (1, 2).
    published = [393217, 669327710093319, 1732421326133921491, 11394790081659126983,
                 9555452776773192676, 3586421180005889563, 1691397964866707553,
                 10735626796753111697, 15216282715349408991, 14247243556711267923]  # fmt: skip
    s0, s1 = 1, 2
    for expected in published:
        output, s0, s1 = reference.xoroshiro128pp(s0, s1)
        assert output == expected


def test_generator_functions_return_the_same_for_ints_and_arrays():
    rng = np.random.default_rng(1)
    s0, s1 = rng.integers(0, 2**64, (2, 500), dtype=np.uint64)
    output, t0, t1 = reference.xoroshiro128pp(s0, s1)
    mixed = reference.mix(s0)
    for i in range(500):
        a, b = int(s0[i]), int(s1[i])
        assert reference.xoroshiro128pp(a, b) == (output[i], t0[i], t1[i])
        assert reference.mix(a) == mixed[i]


@pytest.mark.parametrize(
    "p, expected",
    [
        (0.5, 2**63),
        (0.75, 3 * 2**62),
        (0.1, 0x1999999999999A00),
        (1 / 3, 0x5555555555555400),
        (math.nextafter(0.5, 0), 2**63 - 2**10),
        (math.nextafter(0.5, 1), 2**63 + 2**11),
        (1 - 2.0**-53, 2**64 - 2**11),
        (2.0**-53, 2**11),
        (2.0**-64, 1),
        (1.5 * 2.0**-64, 1),
        (math.nextafter(2.0**-64, 0), 0),
        (5e-324, 0),
        (np.float32(0.1), 0x199999A000000000),
    ],
)
def test_threshold_is_exact(p, expected):
    assert reference.threshold(p) == expected


@pytest.mark.parametrize("p", [0, 1, -0.1, 1.5, math.nan])
def test_threshold_raises_unless_p_is_between_0_and_1(p):
    with pytest.raises(ValueError, match="0 < p < 1"):
        reference.threshold(p)


def test_rounds_end_at_the_lowest_set_bit():
    probabilities = [0.5, 0.75, 0.25, 0.0625, 2.0**-12, 1 - 2.0**-12, 2.0**-13, 0.1, 5e-324]
    rounds = [reference.rounds(reference.threshold(p)) for p in probabilities]
    assert rounds == [1, 2, 2, 4, 12, 12, 12, 12, 12]


@pytest.mark.parametrize("p", [0.0, 5e-324, 2.0**-13, 0.1, 0.25, 0.5, 0.9, 1 - 2.0**-13, 1.0])
@pytest.mark.parametrize("start", [0, 8185, 2**40 + 17, 2**63 - 3])
def test_keep_equals_keep_one(p, start):
    kept = reference.keep(42, 7, p, start, 700)
    for i in [*range(20), *range(60, 70), *range(500, 530), 699]:
        assert reference.keep_one(42, 7, p, start + i) == kept[i]


def test_keep_equals_keep_one_for_elements_that_the_hash_decides():
    for case in reference.recorded_cases()[200:]:
        _, undecided = reference.draw(**case)
        kept = reference.keep(**case)
        mask_id = {key: case[key] for key in ("seed", "call", "p")}
        for i in np.flatnonzero(undecided)[:5]:
            assert reference.keep_one(**mask_id, element=case["start"] + i) == kept[i]


def test_a_range_equals_parts_drawn_separately():
    start, n, p = 2**33 - 4100, 20_000, 0.1
    whole = reference.keep(5, 6, p, start, n)
    for first in (0, 1, 63, 64, 4099, 4100, 4101, 12_291, 12_292, 19_999):
        for length in (0, 1, 64, 513, 9000):
            part = reference.keep(5, 6, p, start + first, min(length, n - first))
            np.testing.assert_array_equal(part, whole[first : first + length])


def test_bits_are_packed_least_significant_first_and_padded_with_zeros():
    for n in (0, 1, 7, 8, 9, 64, 65):
        kept = reference.keep(1, 2, 0.3, 100, n)
        packed = reference.bits(1, 2, 0.3, 100, n)
        assert packed.dtype == np.uint8 and packed.shape == (-(-n // 8),)
        number = int.from_bytes(packed.tobytes(), "little")
        assert number == sum(1 << i for i in range(n) if kept[i])


def test_extreme_probabilities_keep_all_or_no_elements():
    assert reference.keep(1, 2, 0.0, 3, 1000).all()
    assert not reference.keep(1, 2, 1.0, 3, 1000).any()
    assert reference.keep(1, 2, 5e-324, 3, 100_000).all()
    assert reference.keep(1, 2, 2.0**-53, 3, 100_000).all()
    assert not reference.keep(1, 2, 1 - 2.0**-53, 3, 100_000).any()


def test_all_bits_of_seed_and_call_change_the_mask_and_seeds_are_twos_complement():
    def mask(seed, call):
        return reference.bits(seed, call, 0.5, 0, 256).tobytes()

    assert mask(-1, 5) == mask(2**64 - 1, 5)
    assert mask(-(2**63), 5) == mask(2**63, 5)
    masks = {mask(1 << i, 0) for i in range(64)} | {mask(0, 1 << i) for i in range(64)}
    assert len(masks) == 128
    for seed, call in [(2**64, 0), (-(2**63) - 1, 0), (0, -1), (0, 2**64)]:
        with pytest.raises(ValueError, match="64 bits"):
            mask(seed, call)


@pytest.mark.parametrize("p", [0.001, 2.0**-12, 0.0625, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 0.999])
def test_rates_of_dropped_and_undecided_elements_are_as_expected(p):
    n = 2_000_000
    _, undecided = reference.draw(3, 4, p, 5, n)
    kept = reference.keep(3, 4, p, 5, n)
    for selected, probability in [
        (~kept, p),
        (undecided, 2.0 ** -reference.rounds(reference.threshold(p))),
        (~kept[::64], p),
        (~kept[63::512], p),
    ]:
        sigma = math.sqrt(selected.size * probability * (1 - probability))
        assert abs(selected.sum() - selected.size * probability) < SIGMAS * sigma


def test_spawned_seeds_are_distinct():
    seeds = {reference.spawn_seed(seed, i) for seed in (0, 1, -1, 42) for i in range(1000)}
    assert len(seeds) == 4000 and all(0 <= seed < 2**64 for seed in seeds)
    assert reference.spawn_seed(-1, 3) == reference.spawn_seed(2**64 - 1, 3)


# ---- windows and broadcast axes ---------------------------------------------------------------


def test_window_returns_positions_of_the_mask():
    shape, start = (5, 7, 11), 2**62
    index = np.s_[1:4, ::-2, 3]
    flat = reference.window(shape, index, start)
    assert flat.shape == (3, 4) and flat.dtype == np.uint64
    assert flat[2, 1] == start + 3 * 77 + 4 * 11 + 3
    whole = reference.keep(1, 2, 0.4, start, 5 * 7 * 11).reshape(shape)
    for i, element in zip(np.ndindex(flat.shape), flat.flat, strict=True):
        assert whole[index][i] == reference.keep_one(1, 2, 0.4, element)
    assert reference.window((), ()).shape == () and reference.window((2, 0), 1).shape == (0,)


def test_broadcast_keep_repeats_draws_along_broadcast_axes():
    kept = reference.broadcast_keep((6, 5, 4), 0.5, 1, 2, broadcast_dims=(1, -1))
    reduced = reference.keep(1, 2, 0.5, 0, 6)
    assert kept.shape == (6, 5, 4)
    np.testing.assert_array_equal(kept, np.tile(reduced[:, None, None], (1, 5, 4)))
    plain = reference.broadcast_keep((6, 5, 4), 0.5, 1, 2)
    np.testing.assert_array_equal(plain.ravel(), reference.keep(1, 2, 0.5, 0, 120))


# ---- the half types ---------------------------------------------------------------------------


@every_half
def test_widen_converts_all_values_exactly(dtype):
    name = np.dtype(dtype).name
    wide = reference.widen(all_values(np.uint16), name).view(np.float32)
    np.testing.assert_array_equal(wide, all_values(dtype).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(wide), all_values(np.uint16) >> 15 == 1)


@every_half
def test_round_to_half_equals_astype_near_all_values_and_ties(dtype):
    name, (_, mantissa) = np.dtype(dtype).name, reference.HALVES[np.dtype(dtype).name]
    wide = reference.widen(all_values(np.uint16), name)
    tie = 1 << (22 - mantissa)
    values = all_values(dtype).astype(np.float32)
    with np.errstate(all="ignore"):
        middle = (values + np.roll(values, -1)) / np.float32(2)  # ties
    near = np.concatenate([wide, middle.view(np.uint32)])
    for offset in (0, 1, 2, tie - 1, tie, tie + 1, 2 * tie - 1, -1, -2):
        exact = near + np.uint32(offset % 2**32)
        with np.errstate(all="ignore"):
            expected = exact.view(np.float32).astype(dtype)
        assert_same_bits(reference.round_to_half(exact, name).view(dtype), expected, equal_nan=True)


@every_half
def test_round_to_half_equals_astype_for_all_upper_halves_and_random_numbers(dtype):
    name, rng = np.dtype(dtype).name, np.random.default_rng(1)
    upper = np.arange(65536, dtype=np.uint32) << 16
    bits = [upper | low for low in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    exact = np.concatenate([*bits, rng.integers(0, 2**32, 200_000, dtype=np.uint32)])
    with np.errstate(all="ignore"):
        expected = exact.view(np.float32).astype(dtype)
    assert_same_bits(reference.round_to_half(exact, name).view(dtype), expected, equal_nan=True)


@pytest.mark.parametrize("name, quiet", [("float16", 0x7E00), ("bfloat16", 0x7FC0)])
def test_round_to_half_returns_a_quiet_nan_with_its_payload(name, quiet):
    infinity, fraction = (0x7C00, 0x3FF) if name == "float16" else (0x7F80, 0x7F)
    payload = np.arange(1, fraction + 1, dtype=np.uint16)
    for sign in (0, 0x8000):
        wide = reference.widen(sign | infinity | payload, name)
        np.testing.assert_array_equal(reference.round_to_half(wide, name), sign | quiet | payload)
    # All set bits of this payload are cut off, but the result must be NaN instead of infinity.
    assert reference.round_to_half(np.uint32(0x7F800001), name) == quiet
    assert reference.round_to_half(np.uint32(0xFFFFFFFF), name) == 0x8000 | infinity | fraction


# ---- dropout ----------------------------------------------------------------------------------


@every_half
@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.5, 0.9])
def test_apply_equals_numpy_for_all_values_of_half_types(dtype, p):
    x, kept = all_values(dtype), reference.keep(1, 2, p, 0, 65536)
    y = reference.apply(x, kept, p)
    with np.errstate(all="ignore"):
        product = x.astype(np.float32) * np.float32(1 / (1 - p))
        expected = np.where(kept, product, np.float32(0)).astype(dtype)
    assert_same_bits(y, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_apply_multiplies_or_drops_special_values(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 3 * tiny, -1.5, np.finfo(dtype).max], dtype)
    twice = np.array([np.nan, np.inf, -np.inf, -0.0, 6 * tiny, -3, np.inf], dtype)
    y = reference.apply(x, np.ones(7, bool), 0.5)
    np.testing.assert_array_equal(y, twice)
    np.testing.assert_array_equal(np.signbit(y[1:]), np.signbit(x[1:]))
    dropped = reference.apply(x, np.zeros(7, bool), 0.5)
    np.testing.assert_array_equal(dropped.tobytes(), np.zeros(7, dtype).tobytes())


@every_dtype
def test_dropout_draws_elements_in_c_order_for_any_layout(dtype):
    x = np.arange(1, 61).astype(dtype).reshape(5, 4, 3).transpose(2, 0, 1)[:, ::-1]
    y = reference.dropout(x, 0.25, 8, 9)
    kept = reference.keep(8, 9, 0.25, 0, 60).reshape(3, 5, 4)
    assert y.dtype == x.dtype and y.flags.c_contiguous
    np.testing.assert_array_equal(y != 0, kept)
    np.testing.assert_array_equal(reference.dropout_backward(x, 0.25, 8, 9), y)
    for shape in [(), (0,), (2, 0, 3)]:
        empty = np.ones(shape, dtype)
        assert reference.dropout(empty, 0.5, 1, 2).shape == shape
        assert reference.dropout(empty, 0.5, 1, 2).dtype == dtype


def test_dropout_returns_a_copy_for_p_0_and_zeros_for_p_1():
    x = np.array([np.nan, -np.inf, -0.0, 5.0], np.float32)
    y = reference.dropout(x, 0.0, 1, 2)
    assert y.tobytes() == x.tobytes() and y is not x
    assert reference.dropout(x, 1.0, 1, 2).tobytes() == bytes(16)


def test_scale_is_rounded_once():
    assert reference.scale(0.1, np.float64) == 1 / 0.9
    for dtype in DTYPES[:3]:
        scale = reference.scale(0.1, dtype)
        assert scale.dtype == np.float32 and scale == np.float32(1 / 0.9)
    assert reference.scale(1, np.float32) == 0 and reference.scale(0, np.float32) == 1
    with pytest.raises(TypeError, match="got int32"):
        reference.scale(0.5, np.int32)
