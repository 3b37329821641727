"""The functions of cdropout.torch, and PyTorch's operators, that tests call in a loop."""

import pytest

import cdropout as cd

torch = pytest.importorskip("torch")
ct = pytest.importorskip("cdropout.torch")

FUNCTIONS = {  # of tensors of 4 dimensions; each takes inplace= and generator=
    "dropout": ct.dropout,
    "dropout2d": ct.dropout2d,
    "dropout3d": ct.dropout3d,
    "alpha_dropout": lambda x, p, **options: ct.alpha_dropout(x, p, True, **options),
    "feature_alpha_dropout": lambda x, p, **options: ct.feature_alpha_dropout(
        x, p, True, **options
    ),
    "drop_path": ct.drop_path,
}
CALLS = {  # of tensors of 4 dimensions; each takes generator=
    "dropout": lambda x, **generator: ct.dropout(x, 0.5, **generator),
    "dropout1d": lambda x, **generator: ct.dropout1d(x[0], 0.5, **generator),
    "dropout2d": lambda x, **generator: ct.dropout2d(x, 0.5, **generator),
    "dropout3d": lambda x, **generator: ct.dropout3d(x, 0.5, **generator),
    "alpha_dropout": lambda x, **generator: ct.alpha_dropout(x, 0.5, True, **generator),
    "feature_alpha_dropout": lambda x, **g: ct.feature_alpha_dropout(x, 0.5, True, **g),
    "drop_path": lambda x, **g: ct.drop_path(x, 0.5, scale_by_keep=False, **g),
    "mc_dropout": lambda x, **generator: ct.mc_dropout(x, 0.5, 3, **generator),
    "bias_dropout_add": lambda x, **g: ct.bias_dropout_add(x, x[0], x, 0.5, **g),
    "in place": lambda x, **generator: ct.dropout(x * 1, 0.5, inplace=True, **generator),
}
GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "cdropout": lambda: cd.Generator(3),
}
FORMS = {  # PyTorch's, under accelerate()
    "dropout": lambda x, p: torch.dropout(x, p, True),
    "dropout_": lambda x, p: torch.dropout_(x, p, True),
    "feature_dropout": lambda x, p: torch.feature_dropout(x, p, True),
    "feature_dropout_": lambda x, p: torch.feature_dropout_(x, p, True),
    "alpha_dropout": lambda x, p: torch.alpha_dropout(x, p, True),
    "alpha_dropout_": lambda x, p: torch.alpha_dropout_(x, p, True),
    "feature_alpha_dropout": lambda x, p: torch.feature_alpha_dropout(x, p, True),
    "feature_alpha_dropout_": lambda x, p: torch.feature_alpha_dropout_(x, p, True),
    "native_dropout": lambda x, p: torch.native_dropout(x, p, True)[0],
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Untouched:
    """Fails if a generator was drawn from within the block."""

    def __init__(self, *generators):
        self.generators = [torch.default_generator, *[g for g in generators if g is not None]]

    def states(self):
        return [g.state if isinstance(g, cd.Generator) else g.get_state() for g in self.generators]

    def __enter__(self):
        self.before = self.states()

    def holds(self):
        """Return whether no generator was drawn from since the block was entered."""
        return all(
            torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
            for before, after in zip(self.before, self.states(), strict=True)
        )

    def __exit__(self, *_):
        assert self.holds()
