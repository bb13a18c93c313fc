"""params.yaml: every setting of the pipeline, as records, checked as a whole before any stage starts.

This module only reads and checks, so no stage watches it. How settings make a result is in `pipeline.settings.merging`
and in the stages.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from elder import io, problems, regularizers, released
from elder.backend import Compute
from elder.errors import DataWarning, UserError
from elder.networks import NETWORKS
from elder.problems import Problem
from elder.regularizers import OF_FILTERS
from elder.training.pretrain import Pretraining
from elder.training.settings import Finetuning
from pipeline.settings import explain, merging

# Names that DVC's run cache leaves out of its keys, wherever they stand: two values of such a setting share one result.
IGNORED_BY_DVC = ("size", "nfiles")
# Folders of models/ that stand beside those of the cells.
BESIDE_CELLS = {"pretrained", "tuned"}
# The stages of dvc.yaml that there are for each entry of a section.
STAGES = {
    "problems": ("simulate", "baseline"),
    "regularizers": ("pretrain",),
    "cells": ("tune", "finetune", "evaluate", "register"),
}
# Where DVC sees changes of the files that settings of problems name.
WATCHED = Path("data/raw")
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Changes = dict[str, Any]
T = TypeVar("T", bound=BaseModel)
R = TypeVar("R")


class Section(BaseModel):
    """Settings of params.yaml, none of them unknown."""

    model_config = STRICT


class Cell(Section):
    """What is trained and compared.

    finetune: settings that take the place of those in `finetune`. training_problem: settings of the problem that change
    where training draws its measurements, on patches; of a list, each step draws one.
    """

    problem: str
    regularizer: str
    finetune: Changes = {}
    training_problem: Changes = {}

    @property
    def training_problems(self) -> list[Changes]:
        """The changes among which each step of training draws: every choice from the lists of `training_problem`."""
        return merging.choices(self.training_problem)


class Parameterization(Section):
    """A regularizer: settings of its own, and those that take the place of ones in `pretrain` and `network`."""

    model_config = ConfigDict(extra="allow")

    pretrain: Changes = {}
    network: Changes = {}

    @property
    def own(self) -> Changes:
        """The settings of its own."""
        return self.model_extra or {}


class Safeguards(Section):
    """How a training is kept from being lost: steps between two checkpoints, and when it gives up."""

    pretrain_checkpoint: Count
    finetune_checkpoint: Count
    patience: Count


class Preparation(Section):
    """Settings of `prepare`."""

    source: Literal["builtin", "folder"]
    folder: str
    split: str
    group: str
    scaling: Literal["range", "max", "percentile"] | Annotated[list[float], Field(min_length=2, max_length=2)]
    axes: Literal["", "hw", "hwc", "chw", "nhw", "hwn", "nhwc", "nchw"]
    slices: Annotated[int, Field(ge=0)]
    drop_empty: bool
    color: bool
    shorter_side: Annotated[int, Field(ge=0)]
    multiple: Count
    train_scales: Annotated[list[Positive], Field(min_length=1)]
    validation_share: Share
    test_share: Share
    validation_images: Annotated[int, Field(ge=0)]
    validation_side: Annotated[int, Field(ge=0)]
    seed: int

    @model_validator(mode="after")
    def _can_be_used(self) -> Preparation:
        if self.folder.startswith("~"):
            raise UserError("folder must be written out: DVC does not expand ~")
        io.check_scaling(self.scaling)
        if self.validation_share + self.test_share >= 1:
            raise UserError("validation_share and test_share leave nothing to train on")
        return self


class Search(Section):
    """Settings of `tune`. weight: λ where the search starts; 0 takes it from the noise and the operator."""

    weight: Annotated[float, Field(ge=0)]
    sigma: Annotated[float, Field(ge=1 / 255, le=1)]
    sigma_grid: list[Annotated[float, Field(ge=1 / 255, le=1)]]
    factors: Annotated[list[Annotated[float, Field(gt=1)]], Field(min_length=1)]
    tol: Positive
    max_steps: Count


class Evaluation(Section):
    """Settings of `evaluate` and `baseline`."""

    curve_steps: Count
    long_steps: Count
    long_images: Count
    tv_weights: Annotated[list[Positive], Field(min_length=1)]
    robustness: dict[str, list[Changes]]


class Registration(Section):
    """Settings of `register`. license: of the pictures, for the model card; empty if unknown."""

    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    experiments: bool
    license: str


class Params(Section):
    """All of params.yaml."""

    cells: dict[str, Cell]
    problems: dict[str, Changes]
    own_code: str
    regularizers: dict[str, Parameterization]
    network: Changes
    compute: Compute
    safeguards: Safeguards
    prepare: Preparation
    pretrain: Pretraining
    tune: Search
    finetune: Finetuning
    evaluate: Evaluation
    registration: Annotated[Registration, Field(alias="register")]

    def problem(self, name: str) -> Changes:
        """The settings of the problem of that name. Raises `UserError` if it is not in params.yaml."""
        if name not in self.problems:
            raise UserError(f"params.yaml: needs a section problems.{name}")
        return self.problems[name]

    def own_class(self, problem: str) -> str | None:
        """The dotted path of the problem's class if it is one of the user's own: bundles may name it as theirs."""
        return self.problem(problem).get("class")

    def finetuning(self, cell: str) -> Finetuning:
        """The settings of `finetune`, with those of the cell in their places.

        Raises `UserError` for an unknown cell, and for settings that contradict each other.
        """
        if cell not in self.cells:
            raise UserError(f"params.yaml: needs a section cells.{cell}")
        chosen = merging.merged(vars(self.finetune), self.cells[cell].finetune)
        return _fitting(Finetuning, chosen, f"cells.{cell}.finetune")

    def pretraining(self, regularizer: str) -> Pretraining:
        """The settings of `pretrain`, with those of the regularizer in their places.

        Raises `UserError` for an unknown regularizer, and for settings that contradict each other.
        """
        chosen = merging.merged(vars(self.pretrain), self._parameterization(regularizer).pretrain)
        return _fitting(Pretraining, chosen, f"regularizers.{regularizer}.pretrain")

    def description(self, regularizer: str, channels: int) -> dict[str, Any]:
        """What `regularizers.make` takes for the regularizer of that name, for pictures of `channels` colors."""
        own = self._parameterization(regularizer)
        return merging.description(regularizer, channels, self.network, own.network, own.own)

    @property
    def stages(self) -> list[tuple[str, str]]:
        """Every stage of dvc.yaml that belongs to an entry of params.yaml, with the name of that entry."""
        return [
            (stage, name) for section, names in STAGES.items() for stage in names for name in getattr(self, section)
        ]

    def files_of(self, stage: str, name: str = "") -> list[Path]:
        """The files that settings of a stage name, each a dependency that dvc.yaml can't list.

        Of problems masks and kernels, without the :INDEX of a kernel; the list of splits; the bundle that pre-training
        starts from.
        """
        if stage == "prepare":
            return [path for path in (Path(self.prepare.split),) if path.is_file()]
        if stage == "pretrain":
            init = self.pretraining(name).init
            return [] if init in ("none", "released") else [Path(init)]
        problem = self.cells[name].problem if stage in STAGES["cells"] else name
        changes = [self.problems[problem]]
        changes += self.cells[name].training_problems if stage == "finetune" else []
        changes += self.evaluate.robustness[problem] if stage in ("baseline", "evaluate") else []
        named = [value for change in changes for value in change.values() if isinstance(value, str)]
        paths = [Path(text) if Path(text).is_file() else Path(text.rpartition(":")[0]) for text in named]
        return sorted({path for path in paths if path.is_file()})

    def initial_released(self, name: str) -> str | None:
        """The released denoiser that pre-training of a regularizer starts from; `None` if it starts from none."""
        if self.pretraining(name).init != "released":
            return None
        return released.denoiser(self.description(name, 3 if self.prepare.color else 1))

    def unused(self, stage: str) -> list[str]:
        """Of the problems or regularizers that a stage runs for, those that no cell uses; none for other stages."""
        if stage in STAGES["problems"]:
            return sorted(set(self.problems) - {cell.problem for cell in self.cells.values()})
        if stage in STAGES["regularizers"]:
            return sorted(set(self.regularizers) - {cell.regularizer for cell in self.cells.values()})
        return []

    def _parameterization(self, name: str) -> Parameterization:
        if name not in self.regularizers:
            raise UserError(f"params.yaml: needs a section regularizers.{name}")
        return self.regularizers[name]


def overrides(section: str, where: str, changes: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """One line on the settings that a cell or a regularizer puts in the place of those of a section; empty if none.

    A change of the section, by `dvc exp run -S` for example, does not reach these.
    """
    told = [f"{name}={value} in place of {defaults.get(name, 'none')}" for name, value in changes.items()]
    return f"{where}.{section} overrides {section}: {', '.join(told)}" if told else ""


@lru_cache(maxsize=1)
def read() -> Params:
    """The checked params.yaml of this folder. Read once: a stage's settings do not change while it runs."""
    return load(Path("params.yaml"))


class _Once(yaml.CSafeLoader):
    """Refuses a key that stands twice, as DVC does. YAML's own loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def raw(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """The settings as they are written. Raises `UserError` for a file that is missing or not YAML."""
    try:
        whole = yaml.load(path.read_text(), _Once)  # noqa: S506 (a safe loader)
    except FileNotFoundError:
        raise UserError("params.yaml: not here; run from the project's folder") from None
    except yaml.YAMLError as error:
        raise UserError(f"params.yaml: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(whole, dict):
        raise UserError("params.yaml: must be sections of settings")
    return whole


def own_class(problem: str) -> str | None:
    """As `Params.own_class`, from a params.yaml that may lack the problem, may be missing, and is not checked."""
    sections = raw().get("problems") if Path("params.yaml").exists() else None
    settings = sections.get(problem) if isinstance(sections, dict) else None
    return settings.get("class") if isinstance(settings, dict) else None


def load(path: Path) -> Params:
    """The settings of a file. Raises `UserError` for the first setting that no stage could use.

    Every stage checks all of them, so that a mistake in the last one's settings ends the pipeline before hours of
    training.
    """
    whole = raw(path)
    for name in named(whole):
        if name.rpartition(".")[2] in IGNORED_BY_DVC:
            raise UserError(
                f"params.yaml: {name}: DVC's run cache ignores what has this name, and would hand out the result of "
                "another value; choose another name"
            )
    params = validated(Params, whole)
    for section in STAGES:
        for name in getattr(params, section):
            if not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(
                    f"params.yaml: {section}.{name}: a name may have letters, digits, _ and -, since DVC and command "
                    "lines take other characters for signs"
                )
    for name in sorted(BESIDE_CELLS & params.cells.keys()):
        raise UserError(f"params.yaml: cells.{name}: models/{name} holds other models; choose another name")
    if not Path(params.own_code).exists():
        raise UserError(f"params.yaml: own_code={params.own_code}: no such file or folder")
    for name, settings in params.problems.items():
        _check_problem(name, settings, f"problems.{name}")
        _check_watched(name, settings, params.own_code)
        if name not in params.evaluate.robustness:
            raise UserError(f"params.yaml: evaluate.robustness lacks {name}; name changes of this problem, or []")
    for name, changes in params.evaluate.robustness.items():
        if name not in params.problems:
            raise _unknown("evaluate.robustness", name, "problems", params.problems)
        for number, change in enumerate(changes):
            _check_problem(name, {**params.problems[name], **change}, f"evaluate.robustness.{name}[{number}]")
    for bundle in (bundle for name in params.regularizers for bundle in params.files_of("pretrain", name)):
        if not (bundle / "config.json").is_file():
            raise UserError(
                f"params.yaml: pretrain.init={bundle}: neither none nor released nor the folder of a bundle"
            )
    for name in params.regularizers:
        params.pretraining(name)
        _check_regularizer(name, params.description(name, 1), params.regularizers[name].network)
    for name, cell in params.cells.items():
        if cell.problem not in params.problems:
            raise _unknown(f"cells.{name}.problem", cell.problem, "problems", params.problems)
        if cell.regularizer not in params.regularizers:
            raise _unknown(f"cells.{name}.regularizer", cell.regularizer, "regularizers", params.regularizers)
        params.finetuning(name)
        if not cell.training_problems:
            raise UserError(f"params.yaml: cells.{name}.training_problem: an empty list leaves nothing to draw")
        for change in cell.training_problems:
            trained = {**params.problems[cell.problem], **change}
            _check_problem(cell.problem, trained, f"cells.{name}.training_problem")
            _check_patch(name, problems.make(cell.problem, trained), params.finetuning(name).patch)
    read = {file for stage, name in [("prepare", ""), *params.stages] for file in params.files_of(stage, name)}
    for file in sorted(read):
        if not file.resolve().is_relative_to(WATCHED.resolve()):
            warnings.warn(
                f"params.yaml: {file} is outside of {WATCHED}, so that DVC does not see a change of its content",
                DataWarning,
                stacklevel=2,
            )
    return params


def _unknown(where: str, name: str, section: str, known: Iterable[str]) -> UserError:
    """Of a setting that names what its section lacks."""
    return UserError(f"params.yaml: {where} names {name}, and {section} has only {', '.join(known) or 'nothing'}")


def validated(model: type[T], settings: Mapping[str, Any], where: str = "") -> T:
    """The settings as `model`. Raises `UserError` for the first that does not fit, by its path below `where`."""
    try:
        # As JSON: there, strict validation builds dataclasses, which the records of the library are.
        return model.model_validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        raise UserError(f"params.yaml: {explain.first(error, model, where)}") from None


def named(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted path of every name in nested settings, sections and entries of lists among them."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from named(value, f"{prefix}{key}.")
    elif isinstance(node, list):
        for value in node:
            yield from named(value, prefix)


def _fitting(record: type[R], settings: Mapping[str, Any], where: str) -> R:
    """The settings at the path `where` as a record: a dataclass, or a model of `_signature`."""
    holder = create_model("Holder", __config__=STRICT, settings=(record, ...))
    return getattr(validated(holder, {"settings": settings}, where), "settings")  # noqa: B009  a field of this model


def _signature(make: Callable[..., object], *given: str) -> type[BaseModel]:
    """The settings that a constructor takes, with their types, without those that are `given` to it."""
    taken = {name: p for name, p in inspect.signature(make).parameters.items() if name not in given}
    hints = typing.get_type_hints(make if is_dataclass(make) else make.__init__)
    fields: dict[str, Any] = {name: (hints[name], p.default) for name, p in taken.items()}
    return create_model("Settings", __config__=STRICT, **fields)


def _check_problem(name: str, settings: Mapping[str, Any], where: str) -> None:
    with said_of(where):
        kind = type(problems.make(name, {key: value for key, value in settings.items() if key == "class"}))
    own = {key: value for key, value in settings.items() if key != "class"}
    _fitting(_signature(kind), own, where)
    with said_of(where):
        problems.make(name, settings)


def _check_patch(cell: str, problem: Problem, patch: int) -> None:
    try:
        problem.check_size((patch, patch))
    except UserError as error:
        raise UserError(
            f"params.yaml: cells.{cell} trains on patches of {patch}x{patch}: {error}; change finetune.patch, or "
            f"what training measures by cells.{cell}.training_problem"
        ) from None


def _check_watched(name: str, settings: Mapping[str, Any], own_code: str) -> None:
    """Raise `UserError` for a problem of the user's own whose module DVC does not watch."""
    kind = type(problems.make(name, settings))
    source = Path(inspect.getsourcefile(kind) or "").resolve()
    if "class" in settings and not source.is_relative_to(Path(own_code).resolve()):
        raise UserError(
            f"params.yaml: problems.{name}.class={settings['class']} is in {source.name}, which DVC does not watch: "
            "name this file, or a folder that holds it, in own_code"
        )


def _check_regularizer(name: str, description: Mapping[str, Any], changes: Changes) -> None:
    """Raise `UserError` for a setting that the regularizer does not take. changes: those of its network."""
    settings = {key: value for key, value in description.items() if key not in ("name", "network", "channels")}
    if name in OF_FILTERS and changes:
        raise UserError(f"params.yaml: regularizers.{name}.network: this regularizer is built over no network")
    if name in OF_FILTERS:
        _fitting(_signature(OF_FILTERS[name], "channels"), settings, f"regularizers.{name}")
    elif settings:
        wrong = f"regularizers.{name}.{next(iter(settings))}"
        raise UserError(f"params.yaml: {explain.unknown(wrong, list(Parameterization.model_fields))}")
    network = {key: value for key, value in description.get("network", {}).items() if key != "channels"}
    if network.get("name") in NETWORKS:
        _fitting(_signature(NETWORKS[network.pop("name")], "channels"), network, "network")
    with said_of(f"regularizers.{name}"):
        regularizers.make(**description)


@contextmanager
def said_of(where: str) -> Iterator[None]:
    """Name the place in params.yaml in an error of the library, which knows none."""
    try:
        yield
    except UserError as error:
        raise UserError(f"params.yaml: {explain.below(where, str(error))}") from None
