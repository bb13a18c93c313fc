"""params.yaml as a whole: the settings of every stage, all of them checked before any stage starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from elder import io
from elder.errors import UserError
from pipeline import settings

# Names that DVC's run cache leaves out of its keys, wherever they stand: two values of such a setting share one result.
IGNORED_BY_DVC = ("size", "nfiles")


@dataclass(frozen=True)
class Safeguards:
    """How a training is kept from being lost: steps between two checkpoints, and when it gives up."""

    pretrain_checkpoint: int
    finetune_checkpoint: int
    patience: int

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise UserError("params.yaml: safeguards must be positive")


@dataclass(frozen=True)
class Preparation:
    """Settings of `prepare`."""

    source: str
    folder: str
    split: str
    group: str
    scaling: str | list[float]
    axes: str
    slices: int
    drop_empty: bool
    color: bool
    shorter_side: int
    train_scales: list[float]
    validation_share: float
    test_share: float
    seed: int

    def __post_init__(self) -> None:
        if self.source not in ("builtin", "folder"):
            raise UserError(f"prepare.source={self.source!r} must be builtin or folder")
        if self.folder.startswith("~"):
            raise UserError(f"prepare.folder={self.folder}: write the path out; DVC does not expand ~")
        io.check_scaling(self.scaling)
        if self.axes not in ("", *io.AXES) or self.slices < 0:
            raise UserError(f"prepare.axes must be empty or one of {', '.join(io.AXES)}; prepare.slices not negative")
        if self.shorter_side < 0 or not self.train_scales or min(self.train_scales) <= 0:
            raise UserError("prepare.shorter_side must not be negative, prepare.train_scales positive numbers")
        if not (0 < self.validation_share < 1 and 0 < self.test_share < 1):
            raise UserError("prepare.validation_share and prepare.test_share must be in (0, 1)")
        if self.validation_share + self.test_share >= 1:
            raise UserError("prepare.validation_share and prepare.test_share leave nothing to train on")


@dataclass(frozen=True)
class Search:
    """Settings of `tune`. weight: λ where the search starts; 0 takes it from the noise and the operator."""

    weight: float
    sigma: float
    factors: list[float]
    tol: float
    max_steps: int

    def __post_init__(self) -> None:
        if not 1 / 255 <= self.sigma <= 1:
            raise UserError(f"params.yaml: tune.sigma={self.sigma} must be in [1/255, 1]")
        if not self.factors or min(self.factors) <= 1:
            raise UserError("params.yaml: tune.factors must be a list of numbers above 1")
        if self.weight < 0 or min(self.tol, self.max_steps) <= 0:
            raise UserError("params.yaml: tune.tol and tune.max_steps must be positive, and tune.weight not negative")


@dataclass(frozen=True)
class Evaluation:
    """Settings of `evaluate`."""

    curve_steps: int
    long_steps: int
    long_images: int
    tv_weights: list[float]
    robustness: dict[str, list[dict[str, Any]]]

    def __post_init__(self) -> None:
        if min(self.curve_steps, self.long_steps, self.long_images) < 1:
            raise UserError("params.yaml: evaluate.curve_steps, long_steps and long_images must be positive")
        if not self.tv_weights or min(self.tv_weights) <= 0:
            raise UserError("params.yaml: evaluate.tv_weights must be positive")


@dataclass(frozen=True)
class Registration:
    """Settings of `register`."""

    margin: float


def check() -> None:
    """Raise `UserError` for the first setting of params.yaml that no stage could use.

    Every stage calls this, so that a mistake in the last one's settings ends the pipeline before hours of training.
    """
    # Imported here: a stage that reads its settings does not depend on the files that only check those of the others.
    from elder import problems, regularizers
    from elder.backend import Compute
    from elder.training.finetune import Finetuning
    from elder.training.pretrain import Pretraining

    typed = {
        "compute": Compute,
        "safeguards": Safeguards,
        "prepare": Preparation,
        "pretrain": Pretraining,
        "tune": Search,
        "finetune": Finetuning,
        "evaluate": Evaluation,
        "register": Registration,
    }
    for path in named(settings.section()):
        if path.rpartition(".")[2] in IGNORED_BY_DVC:
            raise UserError(
                f"params.yaml: {path}: DVC's run cache ignores what has this name, and would hand out the result of "
                "another value; choose another name"
            )
    known = ("cells", "problems", "regularizers", "network", *typed)
    for name in settings.section():
        if name not in known:
            raise UserError(f"params.yaml: unknown section {name}; known are {', '.join(known)}")
    for name, cls in typed.items():
        settings.typed(cls, name)
    for name in settings.section("problems"):
        problems.make(name, settings.section("problems", name))
    robustness = settings.typed(Evaluation, "evaluate").robustness
    for name in settings.section("problems"):
        if name not in robustness:
            raise UserError(f"params.yaml: evaluate.robustness lacks {name}; name changes of this problem, or []")
    for name, changes in robustness.items():
        for change in changes:
            problems.make(name, {**settings.section("problems", name), **change})
    for name in settings.section("regularizers"):
        settings.typed(Pretraining, "pretrain", over=settings.section("regularizers", name).get("pretrain"))
        regularizers.make(**description(name, 1))
    for name in settings.section("cells"):
        cell = settings.cell(name)
        settings.typed(Finetuning, "finetune", over=cell.finetune)
        problems.make(cell.problem, {**settings.section("problems", cell.problem), **cell.training_problem})
        settings.section("regularizers", cell.regularizer)


def named(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted path of every name in nested settings, sections and entries of lists among them."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from named(value, f"{prefix}{key}.")
    elif isinstance(node, list):
        for value in node:
            yield from named(value, prefix)


def description(regularizer: str, channels: int) -> dict[str, Any]:
    """What `regularizers.make` takes for the regularizer of that name in params.yaml."""
    from elder import regularizers

    entry = settings.section("regularizers", regularizer)
    chosen = {key: value for key, value in entry.items() if key not in ("pretrain", "network")}
    if regularizer in regularizers.OVER_A_NETWORK:
        network = {"channels": channels, **settings.section("network"), **entry.get("network", {})}
        return {"name": regularizer, "network": network, **chosen}
    return {"name": regularizer, "channels": channels, **chosen}
