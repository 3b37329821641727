"""Tests of CdropoutOps: thinc's masks with another source, and every other operation untouched."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .. import reference
from ..helpers.requirements import find_or_skip, import_or_skip

import_or_skip("thinc")
from thinc.api import (  # noqa: E402
    LSTM,
    Adam,
    Dropout,
    HashEmbed,
    Linear,
    NumpyOps,
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

from cdropout.thinc import CdropoutOps  # noqa: E402

OPS = CdropoutOps()


@pytest.fixture(autouse=True)
def current_ops():
    """Leave thinc as it was found."""
    before, state = get_current_ops(), np.random.get_state()
    yield
    set_current_ops(before)
    np.random.set_state(state)


def numbers(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def next_mask(shape, drop):
    """Return the mask that comes next, by the slow twin, and leave the generator where it is."""
    state = np.random.get_state()
    seed = np.random.randint(2**64, dtype=np.uint64)
    np.random.set_state(state)
    return reference.dropout(np.ones(shape, np.float32), drop, int(seed), 0)


# ---- the ops ------------------------------------------------------------------------------------


def test_thinc_finds_it_by_name():
    config = registry.resolve({"ops": {"@ops": "CdropoutOps"}})
    assert type(config["ops"]) is CdropoutOps
    with use_ops("cdropout"):
        assert type(get_current_ops()) is CdropoutOps
        model = chain(Relu(4, dropout=0.2), Linear(2))
    assert {type(node.ops) for node in model.walk()} == {CdropoutOps}


@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (90, 100), (3, 4, 5, 6)])
@pytest.mark.parametrize("drop", [0.1, 0.5, np.float32(0.25)])
def test_masks_hold_0_or_the_scale(shape, drop):
    fix_random_seed(5)
    expected = next_mask(shape, float(drop))
    mask = OPS.get_dropout_mask(shape, drop)
    np.testing.assert_array_equal(mask, expected, strict=True)
    assert mask.flags.writeable and not np.array_equal(mask, OPS.get_dropout_mask((90, 100), drop))


@pytest.mark.parametrize("drop", [None, 0, 0.0, -0.5, 1, 1.0, 2])
def test_nothing_is_drawn_where_nothing_is_left_to_chance(drop):
    before = np.random.get_state()[1:3]
    mask = OPS.get_dropout_mask((3, 4), drop)
    np.testing.assert_array_equal(mask, NumpyOps().get_dropout_mask((3, 4), drop), strict=True)
    np.testing.assert_equal(np.random.get_state()[1:3], before)


def test_a_rate_that_is_no_number():
    with pytest.raises(
        ValueError, match="dropout probability has to be between 0 and 1, but got n"
    ):
        OPS.get_dropout_mask((3,), float("nan"))


@pytest.mark.parametrize("seed_all", [fix_random_seed, np.random.seed])
def test_what_makes_thincs_masks_repeatable_makes_these(seed_all):
    runs = []
    for seed in (3, 3, 4):
        seed_all(seed)
        runs.append([OPS.get_dropout_mask((60, 60), 0.5).tobytes() for _ in range(3)])
    assert runs[0] == runs[1] and len({*runs[0], *runs[2]}) == 6


def test_every_other_operation_is_thincs_own():
    assert {name for name in vars(CdropoutOps) if not name.startswith("__")} == {
        "get_dropout_mask",
        "name",
    }


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
def test_the_dropout_layer(kind):
    wrap, unwrap = INPUTS[kind]
    x, gy = numbers(8, 50), numbers(8, 50)[::-1].copy()
    with use_ops("cdropout"):
        model = Dropout(0.3).initialize(X=wrap(x))
    fix_random_seed(2)
    if kind == "list":  # one mask an item
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
def test_layers_with_a_rate_of_their_own(layer):
    x = np.arange(12, dtype="uint64") if layer == "embedding" else numbers(12, 6)
    drawn = []

    class Counting(CdropoutOps):
        def get_dropout_mask(self, shape, drop):
            drawn.append(drop)
            return super().get_dropout_mask(shape, drop)

    set_current_ops(Counting())
    fix_random_seed(0)
    if layer == "relu":
        model = Relu(5, 6, dropout=0.5)
    elif layer == "embedding":
        model = HashEmbed(6, 40, dropout=0.5)
    else:
        model, x = LSTM(4, 6, dropout=0.5), Padded(x[:, None], *[np.array([1])] * 3)
    model.initialize(X=x)
    model(x, is_train=True)
    assert drawn == [0.5]


def train(ops, seed):
    """Return the losses of some steps of a small network."""
    set_current_ops(ops)
    fix_random_seed(seed)
    x, target = numbers(64, 10), numbers(64, 3)
    model = chain(Relu(32, dropout=0.3), Relu(32, dropout=0.3), Linear(3)).initialize(x, target)
    optimizer, losses = Adam(0.01), []
    for _ in range(30):
        y, backprop = model.begin_update(x)
        losses.append(float(np.mean((y - target) ** 2)))
        backprop((y - target) / len(x))
        model.finish_update(optimizer)
    return losses


def test_training_learns_and_repeats():
    first = train(OPS, 1)
    assert first == train(OPS, 1) != train(OPS, 2)
    assert first != train(NumpyOps(), 1)  # it does draw the masks of this package
    assert np.mean(first[-5:]) < 0.8 * first[0]


# ---- spaCy --------------------------------------------------------------------------------------

CONFIG = """
[nlp]
lang = "en"
pipeline = ["tok2vec", "tagger"]

[nlp.before_creation]
@callbacks = "cdropout.use_cdropout.v1"

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tagger]
factory = "tagger"
"""
SENTENCES = [("I like green eggs", "PVAN"), ("Eat blue ham", "VAN"), ("They eat blue eggs", "PVAN")]


def test_a_spacy_config_names_it():
    spacy = import_or_skip("spacy")
    from spacy.training import Example
    from spacy.util import load_model_from_config

    runs = []
    for _ in range(2):
        fix_random_seed(4)
        nlp = load_model_from_config(spacy.util.Config().from_str(CONFIG), auto_fill=True)
        examples = [
            Example.from_dict(nlp.make_doc(text), {"tags": list(tags)}) for text, tags in SENTENCES
        ]
        optimizer = nlp.initialize(lambda examples=examples: examples)
        used = {type(node.ops) for _, pipe in nlp.pipeline for node in pipe.model.walk()}
        assert used == {CdropoutOps}
        for _ in range(30):
            losses = nlp.update(examples, sgd=optimizer, drop=0.2)
        runs.append(losses["tagger"])
    assert runs[0] == runs[1]
    assert [token.tag_ for token in nlp("They like blue ham")] == list("PVAN")


# ---- the example --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_prints_what_masks_cost():
    find_or_skip("sklearn")  # the digits come with it
    example = Path(__file__).parents[2] / "examples" / "thinc_digits.py"
    options = ["--seeds", "2", "--epochs", "2", "--hidden", "16", "--train", "100", "--p", "0"]
    done = subprocess.run([sys.executable, example, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = re.findall(r"\(.*\) +(\d+\.\d\d \+- \d+\.\d\d)$", done.stdout, re.MULTILINE)
    assert len(errors) == 3 and len(set(errors)) == 1  # with p = 0 nothing tells them apart
    assert re.search(r"^Dropout makes a step -?\d+ % slower", done.stdout, re.MULTILINE)


# ---- without thinc ------------------------------------------------------------------------------


def test_without_thinc_the_command_that_installs_it_is_named():
    program = "import sys; sys.modules['thinc'] = None; import cdropout.thinc"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.stderr.endswith("ImportError: cdropout.thinc needs thinc: pip install thinc\n")
