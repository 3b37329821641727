"""Tests of cdropout.jax: invalid arguments, and other versions of JAX and jaxlib."""

import textwrap

import pytest

from ..helpers.requirements import import_or_skip
from ..helpers.subprocess_runner import run

jax = import_or_skip("jax")
from jax import export  # noqa: E402
from jax import numpy as jnp  # noqa: E402

from cdropout.jax import dropout, seed_and_call  # noqa: E402

from ..helpers.jax_arrays import KEY, eager_and_jit  # noqa: E402

X = jnp.ones((3, 4))
PREAMBLE = """
import warnings
import numpy as np
import jax
from jax import numpy as jnp
import cdropout as cd
from cdropout.jax import dropout

key, x = jax.random.key(7), jnp.arange(1.0, 200_001).reshape(4, 50_000)
expected = cd.Mask(x.shape, 0.3, 7).apply(np.asarray(x))
"""


def run_after_preamble(script, **variables):
    """Run PREAMBLE and a script in a new process with warnings as errors; return printed lines."""
    script = PREAMBLE + textwrap.dedent(script)
    status, output, errors = run(script, PYTHONWARNINGS="error", **variables)
    assert status == 0, errors
    return output.splitlines()


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(jax.grad(f))])
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((KEY, X, 1.5), ValueError, "has to be between 0 and 1, but got 1.5"),
        ((KEY, X, float("nan")), ValueError, "has to be between 0 and 1, but got nan"),
        ((KEY, X, "0.5"), TypeError, "p has to be a number between 0 and 1, but got str"),
        ((KEY, X, 0.5, 2), ValueError, r"broadcast_dims has to be in \[-2, 2\) .* but got 2"),
        ((KEY, X, 0.5, (0, -2)), ValueError, r"contains dimension 0 twice: \(0, -2\)"),
        (
            (KEY, X, 0.5, (0.0,)),
            TypeError,
            "each of broadcast_dims has to be an int, but got float",
        ),
        (
            (7, X, 0.5),
            TypeError,
            r"key has to be a JAX key, such as jax.random.key\(7\), but got int",
        ),
        ((X, X, 0.5), TypeError, "key has to be a JAX key.* but got float32"),
        ((jnp.zeros(3, jnp.uint32), X, 0.5), ValueError, r"uint32 of shape \(3,\)"),
        ((jax.random.split(KEY, 3), X, 0.5), ValueError, r"one typed key .* but got key<fry>"),
    ],
)
def test_invalid_arguments_raise(arguments, error, message, wrap):
    key, x, *rest = arguments
    with pytest.raises(error, match=message):
        wrap(lambda x: dropout(key, x, *rest).sum())(x)


@pytest.mark.parametrize(
    "name, value", [("inplace", True), ("broadcast_dims", 0), ("broadcast_dims", (0, 1))]
)
def test_traced_static_arguments_raise(name, value):
    message = f"{name} has to be known .* but it is traced: pass static_argnames='{name}'"
    with pytest.raises(TypeError, match=message):
        jax.jit(dropout)(KEY, X, 0.5, **{name: value})
    y = jax.jit(dropout, static_argnames=name)(KEY, X, 0.5, **{name: value})
    assert (y == dropout(KEY, X, 0.5, **{name: value})).all()


@eager_and_jit
def test_x_with_more_than_64_dimensions_raises(wrap):
    x = jnp.ones((1,) * 63 + (100,))
    y = wrap(dropout)(KEY, x, 0.5)
    assert (y.ravel() == dropout(KEY, x.ravel(), 0.5)).all()
    with pytest.raises(ValueError, match="^x has to have at most 64 dimensions, but got 65"):
        wrap(dropout)(KEY, x[None], 0.5)


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "float8_e4m3fn"])
def test_unsupported_dtypes_of_x_raise(dtype):
    message = f"x has to be an array of float16, bfloat16, float32, float64, but got {dtype}"
    with pytest.raises(TypeError, match=message):
        dropout(KEY, jnp.ones(4, dtype), 0.5)


def test_seed_and_call_of_int_raises():
    with pytest.raises(TypeError, match="key has to be a JAX key, .* but got int"):
        seed_and_call(7)


@pytest.mark.parametrize("platforms", [("cuda",), ("cpu", "cuda")])
def test_unsupported_platform_raises(platforms):
    program = jax.jit(lambda x: dropout(KEY, x, 0.5)).trace(X)
    names = ", ".join(platforms)
    with pytest.raises(NotImplementedError, match=f"the CPU only, .* compiled for {names}; to run"):
        program.lower(lowering_platforms=platforms)


def test_export_needs_a_disabled_check():
    import_or_skip("flatbuffers")  # JAX serializes programs with it
    program, key = jax.jit(lambda key, x: dropout(key, x, 0.5)), jax.random.key_data(KEY)
    with pytest.raises(ValueError, match="custom calls whose targets have no compatibility"):
        export.export(program)(key, X)
    check = export.DisabledSafetyCheck.custom_call("cdropout")
    exported = export.export(program, disabled_checks=[check])(key, X)
    loaded = export.deserialize(exported.serialize())
    assert (loaded.call(key, X) == dropout(KEY, X, 0.5)).all()


LOADED = """
from pathlib import Path
from jax import export
from cdropout.jax import seed_and_call

path = Path({path!r})
if not path.exists():
    check = export.DisabledSafetyCheck.custom_call("cdropout")
    program = jax.jit(lambda key, x: dropout(key, x, 0.3))
    program = export.export(program, disabled_checks=[check])
    path.write_bytes(program(jax.random.key_data(key), x).serialize())
else:
    loaded = export.deserialize(path.read_bytes())
    try:
        loaded.call(jax.random.key_data(key), x)
    except RuntimeError as error:
        print("No FFI handler registered for cdropout" in str(error))
    dropout(key, x, 0.3)
    print(np.array_equal(loaded.call(jax.random.key_data(key), x), expected))
"""


@pytest.mark.slow
def test_exported_program_runs_in_another_process_after_a_call(tmp_path):
    code = LOADED.format(path=str(tmp_path / "program"))
    assert run_after_preamble(code) == []
    assert run_after_preamble(code) == ["True", "True"]


# ---- programs -----------------------------------------------------------------------------------

PROGRAMS = """
from cdropout.jax import seed_and_call

x = x[:, :1200].reshape(120, 40)
programs = {
    "fold_in": lambda key, x, p: dropout(jax.random.fold_in(key, 3), x, p),
    "split": lambda key, x, p: dropout(jax.random.split(key)[1], x, p),
    "dot": lambda key, x, p: dropout(key, x @ x.T, p),
    "dot after": lambda key, x, p: dropout(key, x, p) @ x.T,
    "the result": lambda key, x, p: dropout(key, x, p),
    "both": lambda key, x, p: dropout(jax.random.fold_in(key, 3), x @ x.T, p) @ x,
    "sort": lambda key, x, p: dropout(key, jnp.sort(x[:, ::-1]), p),
    "reduce": lambda key, x, p: dropout(key, jnp.cumsum(x, 0), p).sum(),
}
for name, program in programs.items():
    print(name, flush=True)
    of_known_p = jax.jit(lambda key, x: program(key, x, 0.5))(key, x)
    np.testing.assert_allclose(of_known_p, program(key, x, 0.5), rtol=1e-5)
    np.testing.assert_array_equal(of_known_p, jax.jit(program)(key, x, 0.5))
    gradient = jax.jit(jax.grad(lambda x: program(key, x, 0.5).sum()))(x)
    assert np.isfinite(gradient).all()
y = jax.jit(lambda key, x: dropout(jax.random.fold_in(key, 3), x, 0.5))(key, x)
mask = cd.Mask(x.shape, 0.5, *seed_and_call(jax.random.fold_in(key, 3)))
print(np.array_equal(y, mask.apply(np.asarray(x))))
"""


def test_programs_with_operations_before_and_after_dropout():
    """jaxlib 0.5 to 0.7 ends the process in these programs if the custom call has attributes."""
    *names, is_equal = run_after_preamble(PROGRAMS)
    assert len(names) == 8 and is_equal == "True"


# ---- versions -----------------------------------------------------------------------------------


def test_import_without_jax_raises_with_the_install_command():
    status, _, errors = run("import sys; sys.modules['jax'] = None; import cdropout.jax")
    assert status == 1
    assert errors.endswith("cdropout.jax needs JAX: run `pip install 'cdropout[jax]'`")


OTHER_API_VERSION = """
import ctypes
import cdropout.jax
from cdropout.jax import functional

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def write_version_99(frame):
    extension = ctypes.c_uint64.from_address(frame + 8).value
    metadata = ctypes.c_uint64.from_address(extension + 24).value
    ctypes.c_int.from_address(metadata + 24).value = 99

handler, functional.handler = functional.handler, jax.ffi.pycapsule(write_version_99)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(np.array_equal(dropout(key, x, 0.3), expected))
    print(np.array_equal(jax.jit(lambda x: dropout(key, x, 0.3))(x), expected))
print(len(caught), caught[0].category.__name__, caught[0].message)
"""

CALLBACK = (
    OTHER_API_VERSION
    + """
gradient = jax.jit(jax.grad(lambda x: (dropout(key, x, 0.3) ** 2).sum()))(x)
print(np.array_equal(gradient == 0, expected == 0))
keys = jax.random.split(key, 4)
y = jax.vmap(lambda key, x: dropout(key, x, 0.3))(keys, x)
rows = [dropout(key, row, 0.3) for key, row in zip(keys, x)]
print(np.array_equal(y, np.stack(rows)))
y = dropout(key, x, 0.3, 0, inplace=True)
print(np.array_equal(y, cd.dropout(np.asarray(x), 0.3, rng=7, broadcast_dims=0)))
for dtype in "float16", "bfloat16":
    small = x[0, :1000].astype(dtype)
    print(np.array_equal(dropout(key, small, 0.3), cd.Mask(1000, 0.3, 7).apply(np.asarray(small))))
print(float(dropout(key, jnp.float32(2), 0.3)) == float(cd.Mask((), 0.3, 7).apply(np.float32(2))))
p = jnp.float32([0, 0.3, 0.5, 1])
rows = [cd.Mask(50_000, float(p_of_row), 7).apply(row) for p_of_row, row in zip(p, np.asarray(x))]
print(np.array_equal(jax.vmap(dropout, (None, 0, 0))(key, x, p), rows))
print(np.array_equal(jax.jit(dropout)(key, x[1], p[1]), rows[1]))
try:
    jax.jit(dropout)(key, x, 1.5).block_until_ready()
except RuntimeError as error:
    print("dropout probability has to be between 0 and 1, but got 1.5" in str(error))
window = np.array([[0, 2, 0, 9], [0, 0, 0, 1], [0, 5, 0, 70]], np.uint32)
operands = np.array([0, 7], np.uint32), np.asarray(x[:1, :300]).reshape(5, 6, 10), p[1], window
jax.ffi.register_ffi_target("handler", handler, platform="cpu")
custom_call = jax.ffi.ffi_call("handler", jax.ShapeDtypeStruct((5, 6, 10), "float32"))
print(np.array_equal(cdropout.jax.functional._apply_in_python(*operands), custom_call(*operands)))
"""
)


def test_python_callback_replaces_handler_with_another_api_version():
    first, second, warning, *others = run_after_preamble(CALLBACK)
    assert warning.startswith("1 UserWarning this jaxlib cannot call cdropout's kernels directly")
    assert "handler's API version (99." in warning
    assert {first, second, *others} == {"True"} and len(others) == 10
