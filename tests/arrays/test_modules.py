"""Tests of the module Dropout: its methods, its generator and its mask."""

import copy
import doctest
import pickle

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import normal

SHAPE = 20, 30


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 1.0, 0])
def test_forward_and_backward_equal_reference(p, dtype):
    m, x, gy = cd.Dropout(p, rng=7), normal(SHAPE, dtype), normal(SHAPE, dtype)[::-1]
    for call in range(3):
        forward = m.forward if call else m
        np.testing.assert_array_equal(forward(x), reference.dropout(x, p, 7, call), strict=True)
        expected = reference.dropout_backward(gy, p, 7, call)
        np.testing.assert_array_equal(m.backward(gy), expected, strict=True)
        out = np.ones_like(gy)
        assert m.backward(gy, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_module_keeps_the_mask_of_the_last_forward():
    m = cd.Dropout(0.25, rng=-2)
    assert m.mask is None
    for call in range(2):
        m(normal(SHAPE))
        assert m.mask == cd.Mask(SHAPE, 0.25, -2, call)
    gx = m.backward(normal(SHAPE, np.float64))  # the input of forward was float32
    np.testing.assert_array_equal(gx, reference.dropout(normal(SHAPE, np.float64), 0.25, -2, 1))


def test_backward_accepts_the_mask_of_an_earlier_forward():
    m, x = cd.Dropout(0.25, rng=-2), normal(SHAPE)
    masks = [(m(x), m.mask)[1] for _ in range(3)]
    for call, mask in enumerate(masks):
        gx = m.backward(x, mask=mask)
        np.testing.assert_array_equal(gx, reference.dropout(x, 0.25, -2, call))
    np.testing.assert_array_equal(cd.Dropout().backward(x, mask=masks[0]), masks[0].apply(x))
    assert m.mask is masks[-1]


def test_train_and_eval_switch_the_mode():
    m, x = cd.Dropout(0.5, rng=1), normal(SHAPE)
    assert m.training is True
    assert m.eval() is m and m.training is False
    assert m(x) is x
    np.testing.assert_array_equal(m.backward(x), x)
    assert m.train() is m and m.training is True
    np.testing.assert_array_equal(m(x), reference.dropout(x, 0.5, 1, 0))  # eval() drew no mask
    np.testing.assert_array_equal(m.eval().backward(x), reference.dropout(x, 0.5, 1, 0))
    assert m.train(False).training is False and m.train(True).training is True
    np.testing.assert_array_equal(m.eval().train().forward(x), reference.dropout(x, 0.5, 1, 1))


def test_forward_with_inplace_writes_x():
    m, x = cd.Dropout(0.5, inplace=True, rng=1), normal(SHAPE, np.float64)
    expected = reference.dropout(x, 0.5, 1, 0)
    assert m(x) is x
    np.testing.assert_array_equal(x, expected)
    before = x.copy()
    assert m.eval()(x) is x
    np.testing.assert_array_equal(x, before)
    m.train().inplace = False
    assert m(x) is not x
    np.testing.assert_array_equal(x, before)


def test_p_can_be_changed_and_is_validated_by_forward():
    m, x = cd.Dropout(rng=1), normal(SHAPE)
    assert m.p == 0.5
    m.p = 0.9
    np.testing.assert_array_equal(m(x), reference.dropout(x, 0.9, 1, 0))
    mask, m.p = m.mask, 1.5
    with pytest.raises(ValueError, match="between 0 and 1, but got 1.5"):
        m(x)
    assert m.mask is mask
    m.p = 0.5
    np.testing.assert_array_equal(m(x), reference.dropout(x, 0.5, 1, 1))


@pytest.mark.parametrize(
    "module, text",
    [
        (cd.Dropout(), "Dropout(p=0.5, inplace=False)"),
        (cd.Dropout(0.2), "Dropout(p=0.2, inplace=False)"),
        (cd.Dropout(p=1, inplace=True), "Dropout(p=1, inplace=True)"),
        (cd.Dropout(np.float64(0.1), rng=3), "Dropout(p=0.1, inplace=False)"),
    ],
)
def test_repr_equals_that_of_torch(module, text):
    assert repr(module) == text
    assert module.extra_repr() == text[len("Dropout(") : -1]


def test_repr_and_errors_contain_the_name_of_a_subclass():
    class Subclass(cd.Dropout):
        def extra_repr(self):
            return f"only p={self.p}"

    assert repr(Subclass(0.2)) == "Subclass(only p=0.2)"
    with pytest.raises(RuntimeError, match="Subclass.backward was called before forward"):
        Subclass().backward(normal(SHAPE))


# ---- rng -------------------------------------------------------------------------------------


def test_modules_with_the_same_int_as_rng_have_separate_generators():
    a, b, x = cd.Dropout(0.5, rng=6), cd.Dropout(0.5, rng=6), normal(SHAPE)
    cd.manual_seed(0)
    for call in range(3):
        np.testing.assert_array_equal(a(x), reference.dropout(x, 0.5, 6, call))
    np.testing.assert_array_equal(b(x), reference.dropout(x, 0.5, 6, 0))
    assert cd.default_generator.calls == 0


def test_modules_can_share_a_generator():
    generator, x = cd.Generator(6), normal(SHAPE)
    a, b = cd.Dropout(0.5, rng=generator), cd.Dropout(0.5, rng=generator)
    np.testing.assert_array_equal(a(x), reference.dropout(x, 0.5, 6, 0))
    np.testing.assert_array_equal(b(x), reference.dropout(x, 0.5, 6, 1))
    assert generator.calls == 2


def test_module_without_rng_uses_the_default_generator_in_each_call():
    m, x = cd.Dropout(0.5), normal(SHAPE)
    m(x)
    cd.manual_seed(12)
    np.testing.assert_array_equal(m(x), reference.dropout(x, 0.5, 12, 0))
    np.testing.assert_array_equal(m(x), reference.dropout(x, 0.5, 12, 1))


def test_constructor_draws_one_seed_from_a_numpy_generator():
    rng, expected_rng, x = np.random.default_rng(4), np.random.default_rng(4), normal(SHAPE)
    m = cd.Dropout(0.5, rng=rng)
    seed = int(expected_rng.integers(0, 2**64 - 1, endpoint=True, dtype=np.uint64))
    for call in range(2):
        np.testing.assert_array_equal(m(x), reference.dropout(x, 0.5, seed, call))
    assert rng.bit_generator.state == expected_rng.bit_generator.state
    seed = int(np.random.SeedSequence(4).generate_state(1, np.uint64)[0])
    m = cd.Dropout(0.5, rng=np.random.SeedSequence(4))
    np.testing.assert_array_equal(m(x), reference.dropout(x, 0.5, seed, 0))


@pytest.mark.parametrize("protocol", [*range(pickle.HIGHEST_PROTOCOL + 1), "deepcopy"])
def test_copy_of_a_module_draws_the_same_masks_as_the_original(protocol):
    m, x = cd.Dropout(0.3, inplace=True, rng=-8).eval(), normal(SHAPE, np.float64)
    m.train()(x.copy())
    m.eval()
    clone = copy.deepcopy(m) if protocol == "deepcopy" else pickle.loads(pickle.dumps(m, protocol))
    assert (clone.p, clone.inplace, clone.training, clone.mask) == (0.3, True, False, m.mask)
    np.testing.assert_array_equal(clone.backward(x), m.backward(x))
    for call in (1, 2):
        expected = reference.dropout(x, 0.3, -8, call)
        for module in (m, clone):
            np.testing.assert_array_equal(module.train()(x.copy()), expected)


# ---- errors and examples ----------------------------------------------------------------------


def test_backward_before_forward_raises():
    m = cd.Dropout(0.5, rng=1)
    for module in (m, m.eval(), copy.deepcopy(m)):
        with pytest.raises(RuntimeError, match="^Dropout.backward was called before forward: "):
            module.backward(normal(SHAPE))
    with pytest.raises(TypeError):
        m(None)
    with pytest.raises(RuntimeError, match="before forward"):  # m(None) raised and stored no mask
        m.backward(normal(SHAPE))


def test_backward_rejects_a_gradient_with_another_shape():
    m, x = cd.Dropout(0.5, rng=1), normal(SHAPE)
    m(x)
    with pytest.raises(ValueError, match=r"has the shape \(20, 30\), but x has \(30, 20\)"):
        m.backward(x.T)


def test_examples_in_the_docstring_run():
    examples = doctest.DocTestFinder().find(cd.Dropout, "Dropout")
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert sum(result.attempted for result in results) >= 4
    assert sum(result.failed for result in results) == 0
