"""Samples: clean images with their measurements, in memory and on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from elder import io
from elder.errors import UserError
from elder.operators.base import Operator
from elder.problems.base import Problem
from elder.shapes import Images, Measurement

Picture = Float[Tensor, "1 c h w"]


@dataclass(frozen=True, eq=False)
class Sample:
    """A clean image with its measurement y = A x + e."""

    name: str
    truth: Picture  # x, in [0, 1]
    operator: Operator  # A
    y: Measurement  # of the shape of A x, real or complex


def measurements(
    problem: Problem, names: Sequence[str], images: Sequence[Picture], *, stream: int = 0
) -> Iterator[Sample]:
    """Simulate a measurement of every image, (1, c, h, w) each, with noise and operators from the seed of the problem.

    The result is the same for the same images in the same order. One sample is in memory at a time.

    stream: which of the seed's sequences of random numbers; two are independent. Validation needs another than test:
    else what is chosen on validation is chosen for the very noise and operators that it is tested on.
    """
    return _simulated(problem, zip(names, images, strict=True), stream)


def remeasured(problem: Problem, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The images of the samples, measured by another problem as by `measurements`."""
    return _simulated(problem, ((sample.name, sample.truth) for sample in samples))


def _simulated(problem: Problem, named: Iterable[tuple[str, Picture]], stream: int = 0) -> Iterator[Sample]:
    seed = problem.seed
    if stream:
        (seed,) = np.random.SeedSequence([seed % 2**64, stream]).generate_state(1, np.uint64).tolist()
    generator = torch.Generator().manual_seed(seed)
    for name, image in named:
        try:
            sample = Sample(name, image, *problem.simulate(image, generator))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        yield sample


def measure(problem: Problem, names: Sequence[str], images: Sequence[Picture]) -> list[Sample]:
    """All of `measurements` at once."""
    return list(measurements(problem, names, images))


def batches(problem: Problem, samples: Iterable[Sample], most: int) -> Iterator[tuple[Operator, Measurement, Images]]:
    """The samples in their order, in groups that one solve takes: operator, y and clean images, (b, c, h, w).

    A group has at most `most` images, all of one size. What their operators have for each image, masks or kernels, is
    of one size too; the rest, such as the angles of a scan, is equal. One group is in memory at a time.
    """
    group: list[Sample] = []
    for sample in samples:
        if group and (len(group) == most or not _fits(problem, group[0], sample)):
            yield _joined(problem, group)
            group = []
        group.append(sample)
    if group:
        yield _joined(problem, group)


def _fits(problem: Problem, one: Sample, other: Sample) -> bool:
    """Whether both samples can be in one batch."""
    if (one.truth.shape, one.y.shape) != (other.truth.shape, other.y.shape):
        return False
    ours, theirs = problem.arguments(one.operator), problem.arguments(other.operator)
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == value.shape if value.ndim == 4 else np.array_equal(ours[name], value)
        for name, value in theirs.items()
    )


def _joined(problem: Problem, group: Sequence[Sample]) -> tuple[Operator, Measurement, Images]:
    """The samples as one batch. A single one is as it was: no operator is made again."""
    if len(group) == 1:
        return group[0].operator, group[0].y, group[0].truth
    y, truth = (torch.cat(parts) for parts in zip(*((sample.y, sample.truth) for sample in group), strict=True))
    arguments = [problem.arguments(sample.operator) for sample in group]
    if all(first.ndim != 4 for first in arguments[0].values()):
        # Nothing differs between the images. The matrix of a scan takes seconds to make.
        return group[0].operator, y, truth
    whole = {
        name: np.concatenate([each[name] for each in arguments]) if first.ndim == 4 else first
        for name, first in arguments[0].items()
    }
    return problem.bind(y, **whole), y, truth


def is_constrained(problem: Problem, samples: Sequence[Sample]) -> bool:
    """Whether the data term is a hard constraint, under which λ does not affect the reconstruction."""
    return problem.fidelity(samples[0].operator, samples[0].y).constrains


def save(path: str | Path, problem: Problem, sample: Sample) -> None:
    """Write y, (h, w) or (c, h, w), and the operator's arguments as .npz, whole or not at all."""
    arrays = problem.export(sample.operator, sample.y)
    y = arrays.pop("y")[0]
    arguments = {name: value[0, 0] if value.ndim == 4 else value for name, value in arrays.items()}
    with io.replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, **{"y": y[0] if len(y) == 1 else y, **arguments})


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """`y` and the operator's arguments, as a measurement file holds them. Raises `UserError` if there is no `y`."""
    arrays = io.read_arrays(path)
    if "y" not in arrays:
        raise UserError(f"{path}: holds {', '.join(sorted(arrays))} but no y, the measurement")
    return arrays


def read(path: str | Path, problem: Problem, truth: Picture) -> Sample:
    """The sample that `save` wrote, with its clean image, (1, c, h, w). Raises `UserError` if the file does not fit."""
    arrays = read_arrays(path)
    array = arrays.pop("y")
    y = torch.from_numpy(array[None, None] if array.ndim == 2 else array[None])
    try:
        operator, y = problem.accept(y, **arrays)
        operator.check(y)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return Sample(Path(path).name.removesuffix(".npz"), truth, operator, y)


def read_all(folder: str | Path, problem: Problem, names: Sequence[str], truths: Sequence[Picture]) -> Sequence[Sample]:
    """The measurement NAME.npz of each clean image, in the order of the names. A sample is read when it is asked for.

    Raises `UserError` where a measurement is missing, or belongs to no image.
    """
    found = {path.name.removesuffix(".npz") for path in Path(folder).glob("*.npz")}
    if set(names) - found:
        raise UserError(f"{folder}: lacks the measurement of {min(set(names) - found)}: simulate again")
    if found - set(names):
        raise UserError(f"{folder}: {min(found - set(names))} is the measurement of no image: simulate again")
    return io.Lazy(range(len(names)), lambda i: read(Path(folder) / f"{names[i]}.npz", problem, truths[i]))
