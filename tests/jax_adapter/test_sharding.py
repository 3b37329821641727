"""Tests of dropout of arrays that are sharded over four CPU devices."""

import re
from functools import partial

import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import DTYPE_NAMES, assert_same_bits
from ..helpers.requirements import import_or_skip, slow

jax = import_or_skip("jax")
from jax import numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from cdropout.jax import dropout, seed_and_call  # noqa: E402

from ..helpers.jax_arrays import KEY, normal_jax, numpy_dropout  # noqa: E402

SHAPE = (48, 100)
COMMUNICATION = re.compile(r"\b(all-\w+|collective-\w+|reduce-scatter)")
needs_shard_map = pytest.mark.skipif(
    not hasattr(jax, "shard_map"), reason="needs jax.shard_map, of JAX 0.6 or newer"
)

needs_jax_0_7 = pytest.mark.skipif(
    jax.__version_info__ < (0, 7),
    reason="needs JAX 0.7 or newer: in older versions, XLA aborts the process",
)


def make_mesh(axis_type="Auto"):
    """Return a mesh of 2 x 2 devices with the axes a and b."""
    types = getattr(jax.sharding, "AxisType", None)
    options = {} if types is None else {"axis_types": (getattr(types, axis_type),) * 2}
    return jax.make_mesh((2, 2), ("a", "b"), **options)


@pytest.fixture(scope="module")
def mesh():
    assert len(jax.devices()) == 4  # requires XLA_FLAGS=--xla_force_host_platform_device_count=4
    return make_mesh()


def put(x, mesh, *spec):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))


def run_without_communication(function, *operands):
    """Compile a function, assert that no device sends data to another one, and return the result.

    Assert that the result has the same sharding as the operand with index 1.
    """
    program = jax.jit(function).lower(*operands).compile()
    assert COMMUNICATION.findall(program.as_text()) == []
    y = program(*operands)
    assert y.sharding.is_equivalent_to(operands[1].sharding, y.ndim)
    return y


SPECS = [("a", "b"), *slow(("b", "a"), (("a", "b"),), (None, "b"), (None, ("b", "a")), ())]


@pytest.mark.parametrize("spec", SPECS)
def test_shards_draw_windows_of_one_mask(spec, mesh):
    x = normal_jax(SHAPE)
    expected = numpy_dropout(KEY, x, 0.3)
    program = partial(dropout, p=0.3)
    assert_same_bits(run_without_communication(program, KEY, put(x, mesh, *spec)), expected)
    assert_same_bits(dropout(KEY, put(x, mesh, *spec), 0.3), expected)


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_of_sharded_array(spec, mesh):
    x, gy = (put(normal_jax(SHAPE, seed=seed), mesh, *spec) for seed in (1, 2))

    def pull(key, x, gy):
        return jax.vjp(lambda x: dropout(key, x, 0.3), x)[1](gy)[0]

    assert_same_bits(run_without_communication(pull, KEY, x, gy), numpy_dropout(KEY, gy, 0.3))


@pytest.mark.parametrize("dtype", [DTYPE_NAMES[0], *slow(*DTYPE_NAMES[1:])])
def test_sharded_array_with_traced_p(dtype, mesh, enable_x64):
    x = normal_jax((4, 6, 10, 4), dtype)
    y = run_without_communication(dropout, KEY, put(x, mesh, None, "b", "a"), jnp.float32(0.3))
    assert_same_bits(y, numpy_dropout(KEY, x, float(np.float32(0.3))))


@pytest.mark.parametrize("dims", [(0,), (1,), *slow((0, 1))])
def test_sharded_array_with_broadcast_dims(dims, mesh):
    x = normal_jax(SHAPE)
    program = partial(dropout, p=0.3, broadcast_dims=dims)
    y = run_without_communication(program, KEY, put(x, mesh, "a", "b"))
    assert_same_bits(y, numpy_dropout(KEY, x, 0.3, dims))


def numpy_dropouts(keys, x, p):
    """Return the result of dropout of each row with its key and p, computed with NumPy."""
    rows = zip(keys, np.asarray(x), np.broadcast_to(p, len(x)), strict=True)
    return np.stack([cd.Mask(x.shape[1:], p, *seed_and_call(k)).apply(row) for k, row, p in rows])


BATCH = jax.random.split(KEY, 8)


@pytest.mark.parametrize("spec", [("a", "b"), *slow((("b", "a"),), (None, ("a", "b")))])
@pytest.mark.parametrize("p_axis", [*slow(None), 0])
def test_vmap_of_sharded_array(p_axis, spec, mesh):
    """The keys and the values of p are sharded in the same way as the batch axis of x."""
    x = normal_jax((8, 100))
    p = jnp.linspace(0, 1, 8) if p_axis == 0 else jnp.float32(0.3)
    y = run_without_communication(
        jax.vmap(dropout, (0, 0, p_axis)),
        put(jax.random.key_data(BATCH), mesh, *spec[:1]),
        put(x, mesh, *spec),
        put(p, mesh, *spec[: p.ndim]),
    )
    assert_same_bits(y, numpy_dropouts(BATCH, x, p))


@pytest.mark.slow
def test_vmap_with_one_key_and_of_scalars(mesh):
    x = normal_jax((8, 100))
    y = run_without_communication(
        jax.vmap(lambda key, x: dropout(key, x, 0.3), (None, 0)), KEY, put(x, mesh, "a", "b")
    )
    assert_same_bits(y, numpy_dropouts([KEY] * 8, x, 0.3))
    y = jax.jit(jax.vmap(lambda key, x: dropout(key, x, 0.3)))(BATCH, put(x[:, 0], mesh, "a"))
    assert_same_bits(y, numpy_dropouts(BATCH, x[:, 0], 0.3))


UNEVEN = [
    ((47, 100), ("a", "b")),
    *slow(
        ((48, 99), ("a", "b")),
        ((5, 3), (("a", "b"),)),
        ((5, 3), ("b", "a")),
        ((3, 101), (None, ("a", "b"))),
        ((1, 7), ("a", "b")),
        ((2, 1), ("a", "b")),
        ((0, 8), (None, "a")),
    ),
]


@pytest.mark.parametrize("shape_and_spec", UNEVEN)
def test_shards_of_different_lengths(shape_and_spec, mesh):
    """JAX allows shards of different lengths only for intermediate results."""
    shape, spec = shape_and_spec
    x, sharding = normal_jax(shape), NamedSharding(mesh, P(*spec))

    def program(key, x):
        return dropout(key, jax.lax.with_sharding_constraint(x * 1, sharding), 0.3)

    assert_same_bits(jax.jit(program)(KEY, x), numpy_dropout(KEY, x, 0.3))


@pytest.mark.slow
def test_shards_of_the_first_axis_of_different_lengths_are_not_gathered(mesh):
    x, sharding = normal_jax((47, 100)), NamedSharding(mesh, P(("a", "b")))

    def program(key, x):
        x = jax.lax.with_sharding_constraint(x * 1, sharding)
        return dropout(key, x, 0.3).sum(axis=0)

    text = jax.jit(program).lower(KEY, x).compile().as_text()
    assert set(COMMUNICATION.findall(text)) <= {"all-reduce"}  # computes the sum


@pytest.mark.slow
def test_sharding_that_only_the_result_or_only_the_batch_has(mesh):
    x, sharding = put(normal_jax(SHAPE), mesh), NamedSharding(mesh, P("a", "b"))
    program = jax.jit(partial(dropout, p=0.3), out_shardings=sharding)
    y = program(KEY, x)
    assert y.sharding.is_equivalent_to(sharding, 2)
    assert_same_bits(y, numpy_dropout(KEY, x, 0.3))
    assert "all-gather" not in program.lower(KEY, x).compile().as_text()
    x = normal_jax((8, 100))
    y = jax.jit(jax.vmap(partial(dropout, p=0.3)))(
        put(jax.random.key_data(BATCH), mesh, "a"), put(x, mesh, None, "b")
    )
    assert_same_bits(y, numpy_dropouts(BATCH, x, 0.3))


@pytest.mark.slow
def test_layer_with_sharded_weights_has_the_same_mask(mesh):
    x, weights = put(normal_jax((48, 64)), mesh, "a"), put(normal_jax((64, 100)), mesh, None, "b")

    @jax.jit
    def layer(key, x, weights):
        return dropout(key, jnp.exp(x @ weights), 0.3)

    assert "all-gather" not in layer.lower(KEY, x, weights).compile().as_text()
    kept = np.asarray(cd.Mask(SHAPE, 0.3, 7))
    np.testing.assert_array_equal(layer(KEY, x, weights) != 0, kept)
    gradient = jax.jit(jax.grad(lambda w: layer(KEY, x, w).sum()))(weights)
    assert np.isfinite(gradient).all()


def test_inplace_writes_to_donated_shards(mesh):
    x = put(normal_jax(SHAPE), mesh, "a", "b")
    expected = numpy_dropout(KEY, x, 0.3)

    def addresses(x):
        return [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]

    before = addresses(x)
    y = jax.jit(partial(dropout, p=0.3, inplace=True), donate_argnums=1)(KEY, x)
    assert addresses(y) == before and x.is_deleted()
    assert_same_bits(y, expected)


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="needs jax.set_mesh, of JAX 0.7 or newer")
def test_explicit_mesh():
    mesh = make_mesh("Explicit")
    with jax.set_mesh(mesh):
        x = put(normal_jax(SHAPE), mesh, "a", "b")
        y = run_without_communication(partial(dropout, p=0.3), KEY, x)
        assert jax.typeof(y).sharding.spec == P("a", "b")
        gradient = jax.jit(jax.grad(lambda x: dropout(KEY, x, 0.3).sum()))(x)
    assert_same_bits(y, numpy_dropout(KEY, x, 0.3))
    assert_same_bits(gradient, numpy_dropout(KEY, np.ones(SHAPE, np.float32), 0.3))


@pytest.mark.slow
@pytest.mark.skipif(
    not jax.config.jax_use_shardy_partitioner, reason="needs JAX 0.7 or newer, which uses Shardy"
)
def test_gspmd_partitions_without_communication(mesh):
    jax.config.update("jax_use_shardy_partitioner", False)
    try:
        test_shards_draw_windows_of_one_mask(("a", "b"), mesh)
        test_gradient_of_sharded_array(("a", "b"), mesh)
        test_vmap_of_sharded_array(0, ("a", "b"), mesh)
    finally:
        jax.config.update("jax_use_shardy_partitioner", True)


@pytest.mark.parametrize("ndim", [28, *slow(29, 64)])
def test_array_with_many_axes(ndim, mesh):
    """XLA gathers arrays with more than 28 axes."""
    x = normal_jax((1,) * (ndim - 2) + (4, 6))
    sharded = put(x, mesh, *[None] * (ndim - 2), "a", "b")
    call = run_without_communication if ndim == 28 else lambda f, *operands: f(*operands)
    assert_same_bits(call(partial(dropout, p=0.3), KEY, sharded), numpy_dropout(KEY, x, 0.3))


# ---- shard_map ----------------------------------------------------------------------------------


def map_shards(mesh, function, in_specs, out_specs, **options):
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options)
    )


@needs_shard_map
def test_key_per_shard_in_shard_map(mesh):
    x, keys = put(normal_jax(SHAPE), mesh, "a"), jax.random.split(KEY, 2)
    program = map_shards(mesh, lambda keys, x: dropout(keys[0], x, 0.3), (P("a"), P("a")), P("a"))
    y = program(keys, x)
    assert_same_bits(y[:24], numpy_dropout(keys[0], x[:24], 0.3))
    assert_same_bits(y[24:], numpy_dropout(keys[1], x[24:], 0.3))
    gradient = jax.grad(lambda x: program(keys, x).sum())(x)
    np.testing.assert_array_equal(gradient == 0, y == 0)


@pytest.mark.slow
@needs_shard_map
def test_p_per_shard_in_shard_map(mesh):
    x = put(normal_jax(SHAPE), mesh, "a")
    program = map_shards(
        mesh, lambda key, x, p: dropout(key, x, p[0]), (P(), P("a"), P("a")), P("a")
    )
    y = program(KEY, x, jnp.float32([0.25, 1]))
    assert_same_bits(y[:24], numpy_dropout(KEY, x[:24], 0.25))
    assert not y[24:].any()


@pytest.mark.slow
@needs_jax_0_7
def test_shard_map_over_one_of_two_axes(mesh):
    x = put(normal_jax(SHAPE), mesh, "a", "b")
    program = map_shards(mesh, lambda x: dropout(KEY, x * 1, 0.3), P("a"), P("a"), axis_names={"a"})
    y = program(x)
    assert_same_bits(y[:24], numpy_dropout(KEY, x[:24], 0.3))
    assert_same_bits(y[24:], numpy_dropout(KEY, x[24:], 0.3))


def export(x):
    """Return an exported program that applies dropout to arrays like x, as a function."""
    from jax import export

    names = "cdropout", "cdropout_sharded"
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in names]
    return export.export(jax.jit(lambda x: dropout(KEY, x, 0.3)), disabled_checks=checks)(x).call


@pytest.mark.slow
@needs_jax_0_7
def test_exported_program_in_shard_map(mesh):
    x = put(normal_jax(SHAPE), mesh, "a", "b")
    exported = export(put(x[:24], mesh))
    y = map_shards(mesh, lambda x: exported(x * 1), P("a"), P("a"))(x)
    assert_same_bits(y[:24], numpy_dropout(KEY, x[:24], 0.3))
    assert_same_bits(y[24:], numpy_dropout(KEY, x[24:], 0.3))


@pytest.mark.slow
@needs_jax_0_7
@pytest.mark.parametrize("manual, auto", ["ab", "ba"])
def test_exported_program_in_shard_map_over_one_of_two_axes_raises(manual, auto, mesh):
    """In shard_map, XLA partitions the program for two devices, although the mesh has four."""
    x, specs = put(normal_jax(SHAPE), mesh, "a", "b"), (P(manual), P(manual))
    exported = export(put(x[:24], mesh, None, auto))
    program = map_shards(mesh, lambda x: exported(x * 1), *specs, axis_names={manual})
    with pytest.raises(jax.errors.JaxRuntimeError, match="window has to be part of a mask"):
        jax.block_until_ready(program(x))


@needs_shard_map
def test_shard_map_of_replicated_array_raises(mesh):
    x, keys = normal_jax(SHAPE), jax.random.split(KEY, 2)
    message = r"^in shard_map {} differs along \('a',\), but x does not: pass jax.lax.pcast"
    with_keys = map_shards(mesh, lambda keys, x: dropout(keys[0], x, 0.3), (P("a"), P()), P())
    with pytest.raises(ValueError, match=message.format("the key")):
        with_keys(keys, x)
    with_p = map_shards(mesh, lambda p, x: dropout(KEY, x, p[0]), (P("a"), P()), P())
    with pytest.raises(ValueError, match=message.format("p")):
        with_p(jnp.float32([0.25, 1]), x)
