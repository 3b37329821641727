"""Tests of cdropout.thinc: masks, layers of thinc, and training with thinc and spaCy."""

import inspect
import re

import numpy as np
import pytest

from .. import reference
from ..helpers.arrays import normal
from ..helpers.examples import run_example
from ..helpers.requirements import find_or_skip, import_or_skip
from ..helpers.subprocess_runner import run

import_or_skip("thinc")
from thinc.api import (  # noqa: E402
    LSTM,
    Adam,
    Dropout,
    HashEmbed,
    Linear,
    NumpyOps,
    Ops,
    Padded,
    Ragged,
    Relu,
    chain,
    fix_random_seed,
    get_current_ops,
    registry,
    set_current_ops,
    use_ops,
)

from cdropout.thinc import CdropoutOps, use_cdropout  # noqa: E402

OPS = CdropoutOps()


@pytest.fixture(autouse=True)
def restore_ops_and_seed():
    """Restore thinc's current ops and NumPy's global generator after each test."""
    before, state = get_current_ops(), np.random.get_state()
    yield
    set_current_ops(before)
    np.random.set_state(state)


def next_mask(shape, drop):
    """Compute the next mask with the reference implementation; restore NumPy's generator."""
    state = np.random.get_state()
    seed = np.random.randint(2**64, dtype=np.uint64)
    np.random.set_state(state)
    return reference.dropout(np.ones(shape, np.float32), drop, int(seed), 0)


# ---- ops ----------------------------------------------------------------------------------------


def test_ops_are_registered_with_thinc():
    config = registry.resolve({"ops": {"@ops": "CdropoutOps"}})
    assert type(config["ops"]) is CdropoutOps
    with use_ops("cdropout"):
        assert type(get_current_ops()) is CdropoutOps
        model = chain(Relu(4, dropout=0.2), Linear(2))
    assert {type(node.ops) for node in model.walk()} == {CdropoutOps}


@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (90, 100), (3, 4, 5, 6)])
@pytest.mark.parametrize("drop", [0.1, 0.5, np.float32(0.25)])
def test_get_dropout_mask_equals_reference(shape, drop):
    fix_random_seed(5)
    expected = next_mask(shape, float(drop))
    mask = OPS.get_dropout_mask(shape, drop)
    np.testing.assert_array_equal(mask, expected, strict=True)
    assert mask.flags.writeable and not np.array_equal(mask, OPS.get_dropout_mask((90, 100), drop))


@pytest.mark.parametrize("drop", [None, 0, 0.0, -0.5, 1, 1.0, 2])
def test_no_seed_is_drawn_unless_drop_is_between_0_and_1(drop):
    before = np.random.get_state()[1:3]
    mask = OPS.get_dropout_mask((3, 4), drop)
    np.testing.assert_array_equal(mask, NumpyOps().get_dropout_mask((3, 4), drop), strict=True)
    np.testing.assert_equal(np.random.get_state()[1:3], before)


def test_drop_of_nan_raises():
    message = "dropout probability has to be between 0 and 1, but got nan"
    with pytest.raises(ValueError, match=message):
        OPS.get_dropout_mask((3,), float("nan"))


@pytest.mark.parametrize("set_seed", [fix_random_seed, np.random.seed])
def test_seeds_of_thinc_and_numpy_make_masks_reproducible(set_seed):
    runs = []
    for seed in (3, 3, 4):
        set_seed(seed)
        runs.append([OPS.get_dropout_mask((60, 60), 0.5).tobytes() for _ in range(3)])
    assert runs[0] == runs[1] and len({*runs[0], *runs[2]}) == 6


def test_ops_are_consistent_with_those_of_thinc():
    module = "thinc.tests.backends.test_ops"
    reason = "needs the tests of thinc, which this version does not install"
    thinc_tests = pytest.importorskip(module, reason=reason, exc_type=ImportError)
    thinc_tests.test_ops_consistency(CdropoutOps)
    base = Ops.get_dropout_mask  # thinc's test ignores annotations in newer versions
    assert inspect.signature(CdropoutOps.get_dropout_mask) == inspect.signature(base)


def test_other_operations_are_inherited():
    names = {name for name in vars(CdropoutOps) if not name.startswith("__")}
    assert names == {"get_dropout_mask", "name"}


# ---- layers -------------------------------------------------------------------------------------

LENGTHS = np.array([3, 0, 5], "i")
INPUTS = {
    "array": (lambda x: x, lambda y: y),
    "ragged": (lambda x: Ragged(x, LENGTHS), lambda y: y.data),
    "padded": (
        lambda x: Padded(x.reshape(2, 4, 50), np.array([4, 4]), LENGTHS, np.arange(3)),
        lambda y: y.data.reshape(8, 50),
    ),
    "list": (lambda x: [x[:3], x[3:3], x[3:]], lambda y: np.concatenate(y)),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_dropout_layer_applies_the_next_mask(kind):
    wrap, unwrap = INPUTS[kind]
    x, gy = normal((8, 50)), normal((8, 50), seed=2)
    with use_ops("cdropout"):
        model = Dropout(0.3).initialize(X=wrap(x))
    fix_random_seed(2)
    if kind == "list":  # one mask per item
        state = np.random.get_state()
        mask = np.concatenate([OPS.get_dropout_mask((n, 50), 0.3) for n in LENGTHS])
        np.random.set_state(state)
    else:
        mask = next_mask((8, 50), 0.3)
    y, backprop = model(wrap(x), is_train=True)
    assert type(y) is type(wrap(x))
    np.testing.assert_array_equal(unwrap(y), x * mask, strict=True)
    np.testing.assert_array_equal(unwrap(backprop(wrap(gy))), gy * mask, strict=True)
    assert 0.15 < np.mean(mask == 0) < 0.45
    np.testing.assert_array_equal(unwrap(model.predict(wrap(x))), x)
    model.attrs["dropout_rate"] = 0.0
    np.testing.assert_array_equal(unwrap(model(wrap(x), is_train=True)[0]), x)


@pytest.mark.parametrize("layer", ["relu", "embedding", "lstm"])
def test_layers_pass_dropout_to_the_ops(layer):
    x = np.arange(12, dtype="uint64") if layer == "embedding" else normal((12, 6))
    drops = []

    class RecordingOps(CdropoutOps):
        def get_dropout_mask(self, shape, drop):
            drops.append(drop)
            return super().get_dropout_mask(shape, drop)

    set_current_ops(RecordingOps())
    fix_random_seed(0)
    if layer == "relu":
        model = Relu(5, 6, dropout=0.5)
    elif layer == "embedding":
        model = HashEmbed(6, 40, dropout=0.5)
    else:
        model, x = LSTM(4, 6, dropout=0.5), Padded(x[:, None], *[np.array([1])] * 3)
    model.initialize(X=x)
    model(x, is_train=True)
    assert drops == [0.5]


def train(ops, seed):
    """Train a small network with the given Ops and return the loss of each step."""
    set_current_ops(ops)
    fix_random_seed(seed)
    x, target = normal((64, 10)), normal((64, 3))
    model = chain(Relu(32, dropout=0.3), Relu(32, dropout=0.3), Linear(3)).initialize(x, target)
    optimizer, losses = Adam(0.01), []
    for _ in range(30):
        y, backprop = model.begin_update(x)
        losses.append(float(np.mean((y - target) ** 2)))
        backprop((y - target) / len(x))
        model.finish_update(optimizer)
    return losses


def test_training_is_reproducible():
    losses = train(OPS, 1)
    assert losses == train(OPS, 1) != train(OPS, 2)
    assert losses != train(NumpyOps(), 1)
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


# ---- spaCy --------------------------------------------------------------------------------------

CONFIG = """
[nlp]
lang = "en"
pipeline = ["tok2vec", "tagger"]
before_creation = BEFORE_CREATION

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tagger]
factory = "tagger"

[initialize]
before_init = BEFORE_INIT
"""
CALLBACK = '{"@callbacks":"cdropout.use_cdropout.v1"}'
CONFIGS = {
    "before_init": CONFIG.replace("BEFORE_INIT", CALLBACK).replace("BEFORE_CREATION", "null"),
    "before_creation": CONFIG.replace("BEFORE_CREATION", CALLBACK).replace("BEFORE_INIT", "null"),
}
SENTENCES = [("I like green eggs", "PVAN"), ("Eat blue ham", "VAN"), ("They eat blue eggs", "PVAN")]


def make_pipeline(config):
    """Initialize a spaCy pipeline with SENTENCES; return it, the examples and the optimizer."""
    spacy = import_or_skip("spacy")
    from spacy.training import Example
    from spacy.util import load_model_from_config

    fix_random_seed(4)
    nlp = load_model_from_config(spacy.util.Config().from_str(config), auto_fill=True)
    examples = [
        Example.from_dict(nlp.make_doc(text), {"tags": list(tags)}) for text, tags in SENTENCES
    ]
    nlp.add_pipe("sentencizer")  # this component has no model
    return nlp, examples, nlp.initialize(lambda: examples)


@pytest.mark.parametrize("callback", CONFIGS)
def test_spacy_training_with_cdropout_is_reproducible(callback):
    runs = []
    for _ in range(2):
        set_current_ops(NumpyOps())
        nlp, examples, optimizer = make_pipeline(CONFIGS[callback])
        models = [pipe.model for _, pipe in nlp.pipeline if hasattr(pipe, "model")]
        assert {type(node.ops) for model in models for node in model.walk()} == {CdropoutOps}
        assert type(get_current_ops()) is CdropoutOps
        for _ in range(30):
            losses = nlp.update(examples, sgd=optimizer, drop=0.2)
        runs.append(losses["tagger"])
    assert runs[0] == runs[1]
    assert [token.tag_ for token in nlp("They like blue ham")] == list("PVAN")


class GpuOps(Ops):
    """Ops that stand for those of a GPU."""


class OwnOps(NumpyOps):
    """Ops that a user derived from NumpyOps."""


@pytest.mark.parametrize("ops", [GpuOps, OwnOps])
def test_callback_does_not_replace_other_ops(ops):
    spacy = import_or_skip("spacy")
    set_current_ops(ops())
    nlp = spacy.blank("en")
    model = nlp.add_pipe("tagger").model
    use_cdropout()(nlp)
    assert type(get_current_ops()) is ops
    assert {type(node.ops) for node in model.walk()} == {ops}


WITHOUT_CDROPOUT = """
import importlib.metadata, sys

distributions = importlib.metadata.distributions
importlib.metadata.distributions = lambda **options: (
    d for d in distributions(**options) if d.metadata["Name"] != "cdropout"
)
sys.modules["cdropout"] = None
import spacy

nlp = spacy.load(sys.argv[1])
print(*[token.tag_ for token in nlp("They like blue ham")])
print({type(node.ops).__name__ for node in nlp.get_pipe("tagger").model.walk()})
"""


@pytest.mark.slow  # the process takes 3 s to import spaCy
@pytest.mark.parametrize("callback", CONFIGS)
def test_pipeline_loads_without_cdropout_if_the_callback_is_before_init(callback, tmp_path):
    nlp, examples, optimizer = make_pipeline(CONFIGS[callback])
    for _ in range(30):
        nlp.update(examples, sgd=optimizer, drop=0.2)
    nlp.to_disk(tmp_path)
    script = WITHOUT_CDROPOUT.replace("sys.argv[1]", repr(str(tmp_path)))
    status, output, errors = run(script)
    if callback == "before_creation":  # spaCy resolves this callback whenever it loads a pipeline
        assert status == 1 and "cdropout.use_cdropout.v1" in errors
    else:
        assert (status, output) == (0, "P V A N\n{'NumpyOps'}"), errors


# ---- example ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_digits_example_prints_errors_and_slowdown():
    find_or_skip("sklearn")
    options = ["--seeds", "2", "--epochs", "2", "--hidden", "16", "--train", "100", "--p", "0"]
    output = run_example("thinc_digits.py", *options)
    errors = re.findall(r"\(.*\) +(\d+\.\d\d \+- \d+\.\d\d)$", output, re.MULTILINE)
    assert len(errors) == 3 and len(set(errors)) == 1  # with p = 0, all networks are identical
    assert re.search(r"^Dropout makes a step -?\d+ % slower", output, re.MULTILINE)


# ---- without thinc ------------------------------------------------------------------------------


def test_import_without_thinc_raises_with_the_install_command():
    _, _, errors = run("import sys; sys.modules['thinc'] = None; import cdropout.thinc")
    assert errors.endswith("cdropout.thinc needs thinc: run `pip install 'cdropout[thinc]'`")
