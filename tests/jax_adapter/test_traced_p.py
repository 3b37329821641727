"""A probability that is traced, for JAX: under every transformation, in every program."""

from functools import partial
from itertools import product

import numpy as np
import pytest

import cdropout as cd

jax = pytest.importorskip("jax")
from jax import monitoring  # noqa: E402
from jax import numpy as jnp  # noqa: E402

from cdropout.jax import dropout, seed_and_call  # noqa: E402

KEY = jax.random.key(7)
RATES = [0.0, 0.1, 0.5, 0.9, 1.0]
DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.fixture
def x64():
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


def numbers(shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def expected(key, x, p, dims=()):
    """Return the same by NumPy, for the value that p has as a float32 if it is a Python float."""
    p = float(np.float32(p)) if isinstance(p, float) else float(p)
    drawn = [1 if axis in dims else length for axis, length in enumerate(x.shape)]
    keep = np.broadcast_to(np.asarray(cd.Mask(drawn, p, *seed_and_call(key))), x.shape)
    return cd.dropout_backward(np.asarray(x), keep, p=p)


def check(y, right):
    assert y.dtype == right.dtype and y.shape == right.shape
    assert np.asarray(y).tobytes() == np.asarray(right).tobytes()


# ---- the mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("shape", [(), (0, 3), (1000,), (6, 70, 33)])
def test_a_traced_rate_has_its_value_as_a_float32(shape, p):
    x = numbers(shape)
    check(jax.jit(dropout)(KEY, x, p), expected(KEY, x, p))
    check(jax.jit(dropout)(KEY, x, jnp.float32(p)), expected(KEY, x, p))
    check(dropout(KEY, x, jnp.float32(p)), expected(KEY, x, p))


def test_float32_and_float64_rates_name_different_masks(x64):
    key, p = jax.random.key(3), 1 - 2.0**-26  # 1 as a float32
    x = jnp.ones(1 << 20, jnp.float32)
    check(jax.jit(dropout)(key, x, p), cd.Mask(x.shape, p, 3).apply(np.asarray(x)))
    check(jax.jit(dropout)(key, x, jnp.float32(p)), np.zeros(x.shape, np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rate_of_each_type(dtype, x64):
    p, x = jnp.asarray(0.3, dtype), numbers((1000,))
    right = cd.Mask(1000, float(p), 7).apply(np.asarray(x))
    check(jax.jit(dropout)(KEY, x, p), right)
    check(dropout(KEY, x, p), right)


@pytest.mark.parametrize("p", [0, 1])
def test_a_rate_that_is_an_int(p):
    x = numbers((100,))
    check(jax.jit(dropout)(KEY, x, p), expected(KEY, x, p))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
def test_the_ends(dtype, dims, x64):
    x = jnp.asarray([[np.nan, np.inf, -np.inf, -0.0, 1e-7, 3.0]] * 2, dtype)
    program = jax.jit(partial(dropout, broadcast_dims=dims))
    check(program(KEY, x, 0.0), np.asarray(x))
    check(program(KEY, x, 1.0), np.zeros(x.shape, x.dtype))


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_broadcast_dims(dims):
    x = numbers((6, 70, 33))
    program = jax.jit(partial(dropout, broadcast_dims=dims))
    check(program(KEY, x, 0.4), expected(KEY, x, 0.4, dims))


def test_one_program_serves_all_rates():
    traced = []

    @jax.jit
    def program(x, p):
        traced.append(p)
        return dropout(KEY, x, p)

    x = numbers((100,))
    for p in RATES:
        check(program(x, p), expected(KEY, x, p))
    assert len(traced) == 1


def count_compilations(function):
    """Return how many programs XLA compiles for a call."""
    events = []

    def note(event, *_, **__):
        events.append(event)

    monitoring.register_event_duration_secs_listener(note)
    function()
    done = events.count("/jax/core/compile/backend_compile_duration")
    if hasattr(monitoring, "unregister_event_duration_listener"):  # since JAX 0.8
        monitoring.unregister_event_duration_listener(note)
    return done


def test_a_known_rate_compiles_nothing_anew():
    x = numbers((101,))
    assert count_compilations(lambda: dropout(KEY, x, 0.5)) > 0
    assert count_compilations(lambda: [dropout(KEY, x, p / 64) for p in range(1, 64)]) == 0


def test_a_rate_in_a_pytree():
    parameters = {"weight": numbers((40, 30)), "rate": 0.25}

    @jax.jit
    def loss(parameters, x):
        return (dropout(KEY, x @ parameters["weight"], parameters["rate"]) ** 2).sum()

    x = numbers((20, 40), seed=1)
    right = (expected(KEY, x @ parameters["weight"], 0.25) ** 2).sum()
    np.testing.assert_allclose(loss(parameters, x), right, rtol=1e-5)

    def weight_alone(weight):
        return loss({**parameters, "weight": weight}, x)

    assert jax.grad(weight_alone)(parameters["weight"]).shape == (40, 30)


# ---- transformations ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_the_gradient_goes_through_the_same_mask(dtype, wrap, x64):
    x, gy, p = numbers((3, 700), dtype), numbers((3, 700), dtype, seed=1), np.float32(0.3)

    @wrap
    def both(x, gy, p):
        y, pull = jax.vjp(lambda x: dropout(KEY, x, p), x)
        return y, pull(gy)[0], jax.jvp(lambda x: dropout(KEY, x, p), (x,), (gy,))[1]

    y, gx, forward = both(x, gy, p)
    check(y, expected(KEY, x, p))
    check(gx, expected(KEY, gy, p))
    check(forward, expected(KEY, gy, p))


def test_second_derivatives():
    x, p = numbers((50,)), jnp.float32(0.3)

    def loss(x, p):
        return (dropout(KEY, x, p) ** 3).sum()

    hessian = jax.jit(jax.hessian(loss))(x, p)
    factor = np.asarray(expected(KEY, np.ones(50, np.float32), 0.3))
    np.testing.assert_allclose(hessian, np.diag(6 * x * factor**3), rtol=1e-5)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_there_is_no_derivative_with_respect_to_p(wrap):
    x = numbers((50,))
    message = r"no derivative with respect to p; pass jax.lax.stop_gradient\(p\)"

    @wrap
    def loss(p):
        return dropout(KEY, x, p).sum()

    for transform in (jax.grad, jax.value_and_grad, jax.jacfwd, jax.hessian):
        with pytest.raises(NotImplementedError, match=message):
            transform(loss)(0.3)
    with pytest.raises(NotImplementedError, match=message):
        jax.jvp(loss, (0.3,), (1.0,))
    stopped = jax.grad(lambda p: wrap(lambda p: loss(jax.lax.stop_gradient(p)))(p))
    assert stopped(0.3) == 0


BATCHES = [axes for axes in np.ndindex(2, 2, 2) if any(axes)]  # of key, x and p


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
@pytest.mark.parametrize("key_too, x_too, p_too", BATCHES)
def test_vmap(wrap, dims, key_too, x_too, p_too):
    keys, xs, ps = jax.random.split(KEY, 4), numbers((4, 30, 50)), jnp.float32([0, 0.2, 0.5, 1])
    axes = [0 if batched else None for batched in (key_too, x_too, p_too)]
    given = [keys if key_too else KEY, xs if x_too else xs[0], ps if p_too else jnp.float32(0.3)]
    y = wrap(jax.vmap(partial(dropout, broadcast_dims=dims), axes))(*given)
    assert y.shape == xs.shape
    for i in range(4):
        one = [value if axis is None else value[i] for value, axis in zip(given, axes, strict=True)]
        check(y[i], expected(*one, dims))


def test_vmap_along_other_axes():
    keys, xs, ps = jax.random.split(KEY, 4), numbers((30, 4, 50)), jnp.float32([0, 0.2, 0.5, 1])
    y = jax.vmap(dropout, (0, 1, 0), out_axes=2)(keys, xs, ps)
    for i in range(4):
        check(y[:, :, i], expected(keys[i], xs[:, i], ps[i]))


@pytest.mark.parametrize(
    "outer, inner",
    [
        pair if (1, 1, 1) in pair else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in product(BATCHES, BATCHES)
    ],
)
def test_vmap_of_vmap(outer, inner):
    """Each of key, x and p in the outer batch, the inner batch, both or none."""

    def picked(pair, numbers):
        return tuple(number for number, has in zip(numbers, pair, strict=True) if has)

    def axes(batched):
        return [0 if has else None for has in batched]

    pairs = list(zip(outer, inner, strict=True))
    batches = [picked(pair, (2, 3)) for pair in pairs]
    keys = jax.random.split(KEY, batches[0]) if batches[0] else KEY
    xs = numbers((*batches[1], 40, 9))
    ps = jnp.asarray(np.random.default_rng(2).random(batches[2]), jnp.float32)
    one = jax.vmap(partial(dropout, broadcast_dims=1), axes(inner))
    y = jax.jit(jax.vmap(one, axes(outer)))(keys, xs, ps)
    assert y.shape == (2, 3, 40, 9)
    for i, j in np.ndindex(2, 3):
        key, x, p = (
            value[picked(pair, (i, j))] for value, pair in zip((keys, xs, ps), pairs, strict=True)
        )
        check(y[i, j], expected(key, x, p, (1,)))


@pytest.mark.parametrize("p", [0.3, None])
def test_a_batched_condition_batches_all(p):
    """vmap makes a cond a select, whose operands it batches: also a known p."""
    keys, xs, ps = jax.random.split(KEY, 4), numbers((4, 30)), jnp.float32([0.1, 0.2, 0.5, 1])

    def one(key, x, q):
        rate = q if p is None else p
        return jax.lax.cond(q > 0.3, lambda: dropout(key, x, rate), lambda: x)

    y = jax.jit(jax.vmap(one))(keys, xs, ps)
    check(y[:2], np.asarray(xs[:2]))
    for i in (2, 3):
        rate = float(ps[i]) if p is None else p
        check(y[i], cd.Mask(30, rate, *seed_and_call(keys[i])).apply(np.asarray(xs[i])))


def test_the_gradient_of_a_vmap():
    keys, xs, ps = jax.random.split(KEY, 4), numbers((4, 50)), jnp.float32([0, 0.2, 0.5, 1])
    gradients = jax.vmap(jax.grad(lambda x, key, p: dropout(key, x, p).sum()))(xs, keys, ps)
    for i in range(4):
        check(gradients[i], expected(keys[i], np.ones(50, np.float32), ps[i]))


def test_scan_over_rates():
    x, keys, ps = numbers((200,)), jax.random.split(KEY, 5), jnp.linspace(0, 0.5, 5)

    def forward(x, keys, ps):
        return jax.lax.scan(lambda x, step: (dropout(step[0], x, step[1]), None), x, (keys, ps))[0]

    right = np.asarray(x)
    for key, p in zip(keys, ps, strict=True):
        right = expected(key, right, p)
    check(jax.jit(forward)(x, keys, ps), right)
    gradient = jax.jit(jax.grad(lambda x: forward(x, keys, ps).sum()))(x)
    np.testing.assert_array_equal(gradient == 0, right == 0)


def test_checkpoint():
    x, p = numbers((300,)), jnp.float32(0.3)

    def loss(x, p, wrap):
        return jnp.sum(wrap(lambda x, p: jnp.sin(dropout(KEY, x, p)))(x, p) ** 2)

    plain, again = (jax.grad(partial(loss, wrap=wrap)) for wrap in (lambda f: f, jax.checkpoint))
    np.testing.assert_allclose(jax.jit(again)(x, p), plain(x, p), rtol=1e-5)


def test_a_donated_array_lends_its_memory():
    x = numbers((1000,))
    right, address = expected(KEY, x, 0.3), x.unsafe_buffer_pointer()
    y = jax.jit(partial(dropout, inplace=True), donate_argnums=1)(KEY, x, 0.3)
    assert y.unsafe_buffer_pointer() == address and x.is_deleted()
    check(y, right)


def test_without_jit():
    x, ps = numbers((4, 100)), jnp.float32([0, 0.2, 0.5, 1])
    with jax.disable_jit():
        check(jax.jit(dropout)(KEY, x, 0.5), expected(KEY, x, 0.5))
        y = jax.vmap(dropout, (None, 0, 0))(KEY, x, ps)
    check(y[2], expected(KEY, x[2], ps[2]))


def test_eval_shape():
    y = jax.eval_shape(dropout, KEY, jax.ShapeDtypeStruct((3, 4), "bfloat16"), 0.5)
    assert y.shape == (3, 4) and y.dtype == "bfloat16"


@pytest.mark.parametrize("shape", ["3, 40", "rows, 40", "rows, columns"])
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
def test_an_exported_program(shape, dims):
    """The shape of x may be known only when the program runs."""
    pytest.importorskip("absl", reason="JAX 0.5 exports with absl-py")
    pytest.importorskip("flatbuffers", reason="JAX writes programs with flatbuffers")
    from jax import export

    x = jax.ShapeDtypeStruct(export.symbolic_shape(shape), "float32")
    key, p = jax.ShapeDtypeStruct((2,), "uint32"), jax.ShapeDtypeStruct((), "float32")
    checks = [export.DisabledSafetyCheck.custom_call("cdropout")]
    program = jax.jit(partial(dropout, broadcast_dims=dims))
    saved = export.export(program, disabled_checks=checks)(key, x, p).serialize()
    x = numbers((3, 40))
    y = export.deserialize(saved).call(jax.random.key_data(KEY), x, jnp.float32(0.3))
    check(y, expected(KEY, x, 0.3, dims))


# ---- wrong rates --------------------------------------------------------------------------------


OF_THE_PROGRAM = (ValueError, jax.errors.JaxRuntimeError)


@pytest.mark.parametrize("p", [-0.5, 1.5, np.inf, np.nan])
@pytest.mark.parametrize("runs_before", [0, 1, 3])
def test_a_traced_rate_out_of_range(p, runs_before):
    """JAX runs a program in another way after its first call, and then raises another error."""
    message = f"dropout probability has to be between 0 and 1, but got {p:g}"
    x, rates = numbers((100,)), jnp.float32([0.5, p])
    program = jax.jit(lambda key, x, p: dropout(key, x, p))  # compiled for this test alone
    batch = jax.jit(jax.vmap(lambda key, x, p: dropout(key, x, p), (None, None, 0)))
    for run in range(runs_before):
        program(KEY, x, run / 4).block_until_ready()
        batch(KEY, x, jnp.float32([0.5, run / 4])).block_until_ready()
    for _ in range(2):
        with pytest.raises(OF_THE_PROGRAM, match=message):
            program(KEY, x, p).block_until_ready()
        with pytest.raises(OF_THE_PROGRAM, match=message):
            batch(KEY, x, rates).block_until_ready()
    with pytest.raises(OF_THE_PROGRAM, match=message):
        jax.vmap(dropout, (None, None, 0))(KEY, x, rates).block_until_ready()
    check(program(KEY, x, 0.5), expected(KEY, x, 0.5))
    with pytest.raises(ValueError, match=message):
        dropout(KEY, x, jnp.float32(p))


@pytest.mark.parametrize(
    "p, found", [([0.5], r"float32 of shape \(1,\)"), (True, "bool of"), (0.5j, "complex64 of")]
)
def test_a_traced_rate_of_another_type(p, found):
    with pytest.raises(TypeError, match=f"p has to be a number between 0 and 1, but got {found}"):
        jax.jit(dropout)(KEY, numbers((100,)), jnp.asarray(p))


def test_a_key_is_no_rate():
    with pytest.raises(TypeError, match="p has to be a number between 0 and 1, but got key<fry>"):
        jax.jit(dropout)(KEY, numbers((100,)), KEY)
