"""The MLflow model registry: versions of `elder-<problem>`, and the gate before the champion."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from elder.errors import UserError
from elder.evaluation.evaluate import evaluate
from elder.evaluation.results import mean
from elder.model.address import folder, load
from elder.problems import Problem
from elder.problems.samples import Sample
from elder.solvers import Status
from pipeline.registry import packaging
from pipeline.tracking import experiments
from pipeline.tracking.fingerprints import content_hash

# What a consumer of a name relies on, as tags of each version; the gate compares them.
FAMILY = ("channels", "settings")
# Of a model: the versions that were champion, the last one last, as "1,3".
HISTORY = "champions"
# Of a version: when a person took the place of the champion from it.
ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and why."""

    name: str
    version: int | None  # None: nothing was registered
    psnr: float
    champion_psnr: float | None  # of the champion before, on the same data; None if there was none that could be loaded
    promoted: bool
    reason: str

    @property
    def told(self) -> str:
        """One line for people."""
        if self.version is None:
            return f"{self.name}: {self.reason}"
        return f"{self.name} version {self.version} is {'champion' if self.promoted else 'challenger'}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A trained bundle and what the gate knows of it."""

    problem: Problem
    bundle: Path
    psnr: float  # on validation, in dB
    data_hash: str  # of the validation images and measurements
    validation: Sequence[Sample]
    card: str = ""  # Markdown: what a consumer should know of the model
    code: str = ""  # a hash of the code that its version carries, see `packaging.code_hash`

    @property
    def name(self) -> str:
        """The name in the registry."""
        return f"elder-{self.problem.name}"

    @property
    def channels(self) -> int:
        """Of the validation pictures: 1 for gray, 3 for color."""
        return self.validation[0].truth.shape[1]

    @property
    def tags(self) -> dict[str, str]:
        """What a version says of itself."""
        settings = {key: value for key, value in self.problem.settings.items() if key != "seed"}
        return {
            "bundle": content_hash(self.bundle),
            "code": self.code,
            "psnr": f"{self.psnr:.4f}",
            "data": self.data_hash,
            "channels": str(self.channels),
            "settings": json.dumps(settings, sort_keys=True),
        }


def register(candidate: Candidate, margin: float) -> Verdict:
    """A version of `elder-<problem>` as challenger; champion if it passes the gate.

    The gate: weights, validation PSNR and the picture of a smoke input are finite, number of colors and settings of the
    problem are those of the champion, and PSNR is higher than the champion's on the same validation measurements by
    `margin` dB. A champion of other data is evaluated on these first. One that is gone or broken is replaced. A version
    that a person has rolled back does not come back by itself.

    A bundle that is registered already keeps its version, so this can be repeated after a kill. If the files of that
    version are gone or damaged, or if the code has changed that a version carries, there is a new version, which takes
    the place of a champion of the same bundle without a margin: it is the same model, with what was mended since.
    Registrations on one machine wait for each other. The champion is read again before it is replaced, in case another
    machine moved it.

    Raises:
        MlflowException: if the registry can't be read or written. Then the champion stays.
        UserError: if the champion, or the candidate's own version, can't be read now. Then the champion stays, too.
    """
    client, name = MlflowClient(), candidate.name
    with experiments.locked(name):
        version = _version(client, candidate)
        client.update_model_version(name, str(version), candidate.card)
        client.set_registered_model_alias(name, "challenger", str(version))
        refusal = _refusal(candidate, version)
        while True:
            before = champion(client, name)
            taken_down = _taken_down(client, candidate, version, before)
            verdict = _judged(candidate, version, before, refusal or taken_down, margin)
            # A registration that was killed may have moved the alias, and not noted it.
            already = before is not None and int(before.version) == version
            if not verdict.promoted or (already and past_champions(client, name)[-1:] == [version]):
                return verdict
            now = champion(client, name)
            if (now and now.version) == (before and before.version):
                promote(client, name, version, verdict.reason)
                return verdict


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that is champion; None if the registry says that there is none. Other errors are raised."""
    try:
        version = client.get_registered_model(name).aliases.get("champion")
        return None if version is None else client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def promote(client: MlflowClient, name: str, version: int, reason: str, history: Sequence[int] | None = None) -> None:
    """Make a version champion, and note when and why. history: the champions so far; those noted if `None`."""
    noted = past_champions(client, name) if history is None else list(history)
    client.set_registered_model_alias(name, "champion", str(version))
    champions = [*noted, version] if noted[-1:] != [version] else noted
    client.set_registered_model_tag(name, HISTORY, ",".join(map(str, champions)))
    client.set_model_version_tag(name, str(version), "promoted", _now())
    client.set_model_version_tag(name, str(version), "reason", reason)
    if ROLLED_BACK in client.get_model_version(name, str(version)).tags:
        client.delete_model_version_tag(name, str(version), ROLLED_BACK)


def roll_back(client: MlflowClient, name: str, to: int | None = None, own_code: str | None = None) -> tuple[int, int]:
    """Make the champion before the present one champion again, or the version `to`. Returns both numbers: from, to.

    own_code: the class of its problem if it is one of the user's own; see `elder.load`.
    Raises `UserError` if there is none, if it can't be loaded, or if it is the champion already.
    """
    with experiments.locked(name):
        present = champion(client, name)
        if present is None:
            raise UserError(f"{name}: has no champion")
        left, history = int(present.version), past_champions(client, name)
        if to is None:
            last = len(history) - 1 - history[::-1].index(left) if left in history else len(history)
            history = history[:last]
            if not history:
                raise UserError(f"{name}: there was no champion before version {left}; choose a version by --to")
        target = history.pop() if to is None else to
        if target == left:
            raise UserError(f"{name}: version {left} is the champion already")
        load(f"models:/{name}/{target}", own_code=own_code)
        client.set_model_version_tag(name, str(left), ROLLED_BACK, _now())
        promote(client, name, target, f"in place of version {left}, by hand", history)
    return left, target


def past_champions(client: MlflowClient, name: str) -> list[int]:
    """The versions that have been champion, the present one last."""
    noted = client.get_registered_model(name).tags.get(HISTORY, "")
    return [int(version) for version in noted.split(",") if version]


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")


def _version(client: MlflowClient, candidate: Candidate) -> int:
    """The number of the candidate's version: of the one with the same bundle and code, if there is one."""
    tags, name = candidate.tags, candidate.name
    same = [int(v.version) for v in _of_bundle(client, candidate) if v.tags.get("code", "") == candidate.code]
    present = champion(client, name)
    # The champion first: files that come back to an earlier version are no reason to go back to it.
    same.sort(key=lambda number: (present is None or int(present.version) != number, number))
    version = next((number for number in same if _is_whole(candidate, number)), None)
    if version is None:
        return _log_version(candidate)
    for key, value in tags.items():  # the validation data may be others
        client.set_model_version_tag(name, str(version), key, value)
    return version


def _is_whole(candidate: Candidate, version: int) -> bool:
    """Whether the files of a version are there, and those of the candidate's bundle.

    Raises `UserError` if the store can't tell now.
    """
    try:
        bundle = folder(f"models:/{candidate.name}/{version}")
        around = [bundle.parents[1] / name for name in ("MLmodel", packaging.CODE.name)]
        return all(path.is_file() for path in around) and content_hash(bundle) == candidate.tags["bundle"]
    except UserError as error:
        if error.temporary:
            raise
        return False


def _of_bundle(client: MlflowClient, candidate: Candidate) -> list[ModelVersion]:
    """The versions that hold the candidate's bundle."""
    bundle = candidate.tags["bundle"]
    return [v for v in client.search_model_versions(f"name = '{candidate.name}'") if v.tags.get("bundle") == bundle]


def _refusal(candidate: Candidate, version: int) -> str | None:
    """Why this version can't be champion, whatever the present one is."""
    if not math.isfinite(candidate.psnr):
        return "its validation PSNR is not finite"
    try:
        model, sample = load(candidate.bundle, own_code=candidate.problem.own_code), candidate.validation[0]
    except UserError as error:  # weights that are not finite, for one
        return f"can't be loaded ({error})"
    if model.solve(sample.operator, sample.y).status[0] is Status.NOT_FINITE:
        return "not finite on the smoke input"
    inputs = packaging.served_inputs(candidate.problem, sample)
    if not smoke(f"models:/{candidate.name}/{version}", inputs, sample.truth.shape[-2:]):
        return "not finite on the smoke input, as it is served"
    return None


def _taken_down(client: MlflowClient, candidate: Candidate, version: int, before: ModelVersion | None) -> str | None:
    """Why a version that a person has rolled back stays where it is; `None` for others.

    One with other code stays, too, unless the champion holds its bundle: then it was the code that was rolled back.
    """
    same = _of_bundle(client, candidate)
    if before is not None and int(before.version) in [int(v.version) for v in same]:
        same = [v for v in same if v.tags.get("code", "") == candidate.code]
    if not any(ROLLED_BACK in v.tags for v in same):
        return None
    return f"rolled back by hand before. To bring it back: {_by_hand(candidate, version)}"


def _by_hand(candidate: Candidate, version: int) -> str:
    """The command that makes a version champion, whatever the gate says of it."""
    return f"python -m pipeline.rollback {candidate.problem.name} --to {version}"


def _judged(
    candidate: Candidate, version: int, before: ModelVersion | None, refusal: str | None, margin: float
) -> Verdict:
    psnr: float | None = None
    if refusal is not None:
        promoted, reason = False, refusal
    elif before is None:
        promoted, reason = True, "the first champion"
    elif int(before.version) == version:
        psnr, promoted, reason = candidate.psnr, True, "it is the champion already"
    elif other := [key for key in FAMILY if before.tags.get(key, candidate.tags[key]) != candidate.tags[key]]:
        differences = "; ".join(f"{key} {candidate.tags[key]} in place of {before.tags[key]}" for key in other)
        promoted, reason = (
            False,
            (
                f"made for another problem than champion {before.version}: {differences}. If that is wanted: "
                + _by_hand(candidate, version)
            ),
        )
    elif before.tags.get("bundle") == candidate.tags["bundle"]:
        changed = before.tags.get("code", "") != candidate.code
        why = f"champion {before.version} with changed code" if changed else f"champion {before.version} has lost files"
        psnr, promoted, reason = candidate.psnr, True, why
    else:
        try:
            psnr = _psnr(candidate, before)
        except UserError as error:
            if error.temporary:  # it may be as good as ever
                raise
            promoted, reason = True, f"champion {before.version} can't be loaded ({error})"
        else:
            ahead = candidate.psnr - psnr
            promoted = ahead >= margin
            reason = f"{ahead:+.2f} dB over the champion, {'at least' if promoted else 'less than'} {margin:g}"
    return Verdict(candidate.name, version, candidate.psnr, psnr, promoted, reason)


def _psnr(candidate: Candidate, version: ModelVersion) -> float:
    """The PSNR of a version on the candidate's validation data, as noted or measured."""
    noted = float(version.tags.get("psnr", "nan"))
    if version.tags.get("data") == candidate.data_hash and math.isfinite(noted):
        return noted
    model = load(f"models:/{candidate.name}/{version.version}", own_code=candidate.problem.own_code)
    return mean(result.metrics for result in evaluate(model, candidate.validation))["psnr"]


def smoke(uri: str, inputs: dict[str, np.ndarray], size: Sequence[int]) -> bool:
    """Whether the served model gives finite pictures of the right size for one measurement."""
    x = mlflow.pyfunc.load_model(uri).predict(inputs)
    return bool(np.isfinite(x).all()) and x.shape[-2:] == tuple(size)


def _log_version(candidate: Candidate) -> int:
    """Log the bundle as a model, and make a version of it with all its tags at once."""
    h, w = candidate.validation[0].truth.shape[-2:]
    with packaging.contents(candidate.problem, candidate.bundle, candidate.channels, (h, w)) as contents:
        info = mlflow.pyfunc.log_model(name="model", **contents)
    return int(mlflow.register_model(info.model_uri, candidate.name, tags=candidate.tags).version)
