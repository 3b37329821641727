"""Tests of the modules: their methods, their generators and their masks."""

import copy
import pickle

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import assert_same_bits, normal
from ..helpers.requirements import import_or_skip

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


def test_train_and_eval_switch_the_mode():
    m, x = cd.Dropout(0.5, rng=1), normal(SHAPE)
    assert m.training is True
    assert m.eval() is m and m.training is False
    assert m(x) is x
    np.testing.assert_array_equal(m.backward(x), x)
    assert m.train() is m and m.training is True
    # In evaluation mode, m drew no mask
    np.testing.assert_array_equal(m(x), reference.dropout(x, 0.5, 1, 0))
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


# ---- all modules ------------------------------------------------------------------------------


MODULES = {
    cd.Dropout: (cd.dropout, (6, 7)),
    cd.Dropout1d: (cd.dropout1d, (4, 9, 5)),
    cd.Dropout2d: (cd.dropout2d, (3, 9, 4, 4)),
    cd.Dropout3d: (cd.dropout3d, (3, 9, 2, 3, 4)),
    cd.AlphaDropout: (cd.alpha_dropout, (6, 7)),
    cd.FeatureAlphaDropout: (cd.feature_alpha_dropout, (6, 7, 4)),
    cd.DropPath: (cd.drop_path, (40, 3)),
}
every_module = pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)


@every_module
def test_backward_of_modules_accepts_masks_of_earlier_forward_calls(kind):
    function, shape = MODULES[kind]
    x, m, generator, masks = normal(shape), kind(0.3, rng=-1), cd.Generator(-1), []
    for _ in range(3):
        expected, mask = function(x, 0.3, True, rng=generator, return_mask=True)
        assert_same_bits(m(x), expected)
        assert m.mask == mask
        assert_same_bits(m.backward(x), mask.apply(x))
        masks.append(mask)
    for mask in reversed(masks):
        assert_same_bits(
            m.backward(x, mask=mask, out=np.empty_like(x)), cd.dropout_backward(x, mask)
        )
    assert m.mask == masks[-1] and len(set(masks)) == 3
    assert_same_bits(kind().backward(x, mask=masks[0]), masks[0].apply(x))


@every_module
def test_modules_return_x_in_evaluation_mode_and_with_inplace(kind):
    function, shape = MODULES[kind]
    x, generator = normal(shape, np.float64), cd.Generator(2)
    m, other = kind(0.3, True, rng=generator), kind(0.3, rng=generator)
    expected = function(x, 0.3, True, rng=2)
    assert m.eval() is m and not m.training
    assert m(x) is x and m.forward(x) is x and generator.calls == 0
    assert_same_bits(m.backward(x), x)
    assert m.train() is m and m.training and m(x) is x and generator.calls == 1
    assert_same_bits(x, expected)
    assert other(x) is not x and other.mask.call == 1  # m used call number 0 of the generator


@every_module
def test_repr_of_modules_equals_that_of_torch(kind):
    name, more = kind.__name__, ", scale_by_keep=True" if kind is cd.DropPath else ""
    assert repr(kind(p=0.2, rng=1)) == f"{name}(p=0.2, inplace=False{more})"
    assert repr(kind(inplace=True)) == f"{name}(p=0.5, inplace=True{more})"
    if kind is cd.DropPath:
        m = kind(0.5, scale_by_keep=False, rng=6)
        assert repr(m) == "DropPath(p=0.5, inplace=False, scale_by_keep=False)"
        x = normal(SHAPE)
        assert_same_bits(copy.deepcopy(m)(x), cd.drop_path(x, 0.5, scale_by_keep=False, rng=6))
    else:
        torch = import_or_skip("torch")
        assert repr(kind(p=0.2)) == repr(getattr(torch.nn, name)(p=0.2))


@every_module
@pytest.mark.parametrize("protocol", [*range(pickle.HIGHEST_PROTOCOL + 1), "deepcopy"])
def test_copy_of_a_module_draws_the_same_masks_as_the_original(kind, protocol):
    x, m = normal(MODULES[kind][1]), kind(0.3, rng=np.random.default_rng(5))
    m(x)
    assert m.mask.seed == np.random.default_rng(5).integers(1 << 64, dtype=np.uint64)
    model = {"layers": [m, kind(0.5, inplace=True).eval()]}
    if protocol == "deepcopy":
        clones = copy.deepcopy(model)["layers"]
    else:
        clones = pickle.loads(pickle.dumps(model, protocol))["layers"]
    for original, clone in zip(model["layers"], clones, strict=True):
        assert repr(clone) == repr(original)
        assert (clone.mask, clone.training) == (original.mask, original.training)
    clone = clones[0]
    assert_same_bits(clone.backward(x), m.backward(x))
    assert_same_bits(clone(x), m(x))
    assert m.mask.call == clone.mask.call == 1


@every_module
def test_module_keeps_its_mask_after_an_error_in_forward(kind):
    m, x = kind(rng=1), normal(MODULES[kind][1])
    with pytest.raises(RuntimeError, match=f"^{kind.__name__}.backward was called before forward"):
        m.backward(x)
    m(x)
    mask = m.mask
    with pytest.raises(TypeError, match="but got int64"):
        m(np.ones(x.shape, np.int64))
    assert m.mask is mask and m(x) is not x and m.mask.call == 1


def test_always_on_restores_the_modes_of_the_modules():
    modules = a, b, c, d = [cd.Dropout(rng=i) for i in range(4)]
    before = [True, False, True, False]
    b.eval(), d.eval()
    nested = {"encoder": [a, (b,)], "head": {frozenset([c])}}
    with cd.always_on(nested, d, [b]):
        assert all(m.training for m in modules)
    assert [m.training for m in modules] == before
    with pytest.raises(KeyError), cd.always_on(nested, d):
        c.eval()
        raise KeyError
    assert [m.training for m in modules] == before
    for thing in (5, None, "encoder", iter([a])):
        message = f"requires modules and containers of modules, but got {type(thing).__name__}"
        with pytest.raises(TypeError, match=message), cd.always_on(b, [d, thing]):
            raise AssertionError("the body was run")
        assert [m.training for m in modules] == before


# ---- errors ------------------------------------------------------------------------------------


def test_backward_before_forward_raises():
    m = cd.Dropout(0.5, rng=1)
    advice = "there is no mask; call forward first, or pass mask="
    match = f"^Dropout.backward was called before forward: {advice}$"
    for module in (m, m.eval(), copy.deepcopy(m)):
        with pytest.raises(RuntimeError, match=match):
            module.backward(normal(SHAPE))
    with pytest.raises(TypeError):
        m(None)
    with pytest.raises(RuntimeError, match="before forward"):  # m(None) has stored no mask
        m.backward(normal(SHAPE))
