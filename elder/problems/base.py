"""What a problem is: an operator, its noise, its initial guess and its settings under one name."""

from __future__ import annotations

import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from elder.errors import UserError
from elder.fidelity import Fidelity, LeastSquares
from elder.operators.base import Operator
from elder.shapes import Argument, Images, Measurement, Size

# The seeds that a generator of torch takes.
SEEDS = range(-(2**63), 2**64)
# What messages call the types of settings.
KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Problem(ABC):
    """An inverse problem y = A x + e, e Gaussian with standard deviation `noise` in [0, 1].

    Fields are the settings that a user may change; a subclass adds its own. `seed` fixes every draw.
    docs/own-problem.md writes one in twenty lines. Raises `UserError` if `noise` is not in [0, 1], or if `seed` has
    more than 64 bits.
    """

    noise: float = 0.0
    seed: int = 0

    name: ClassVar[str]
    initial_name: ClassVar[str] = "adjoint"  # what `initial` gives, in a table
    operator_arguments: ClassVar[tuple[str, ...]] = ()  # the names of the arguments that `bind` takes
    drawing: ClassVar[tuple[str, ...]] = ("seed",)  # settings by which operators are drawn; `bind` draws none

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise UserError(f"noise={self.noise}: the standard deviation must be in [0, 1], as images are")
        if self.seed not in SEEDS:
            raise UserError(f"seed={self.seed}: must be a whole number of at most 64 bits")

    @abstractmethod
    def operator(self, size: Size, batch: int, generator: torch.Generator) -> Operator:
        """An operator for `batch` images of `size`, drawn where the settings leave it open.

        Raises `UserError` if a file that the settings name can't be used, or does not fit pictures of this size.
        """

    @abstractmethod
    def bind(self, y: Measurement, **arguments: Argument) -> Operator:
        """The operator that made the measurement y, from the arguments that a measurement file holds.

        Raises `UserError` if an argument is missing or can't be used. Raises `ValueError`, which `UserError` is too, if
        an argument does not fit y.
        """

    @abstractmethod
    def arguments(self, operator: Operator) -> dict[str, np.ndarray]:
        """What `bind` needs besides y to make this operator again, as arrays."""

    def check_size(self, size: Size) -> None:
        """Raise `UserError` if pictures of this size can't be measured: a mask from a file has one size."""

    def on_patches(self, share: float) -> Self:
        """The problem that is as hard on patches whose side is `share` of the pictures' as this one is on pictures.

        Training measures patches. A setting that counts something across the picture, as the angles of `ct` do, is
        given in proportion; by default there is none.
        """
        return self

    def file_arrays(self) -> dict[str, np.ndarray]:
        """What the files hold that settings name, by the setting. A bundle keeps them, so that it loads anywhere.

        Raises `UserError` if a file can't be used.
        """
        return {}

    def said_by(self, settings: Collection[str]) -> set[str]:
        """The arguments of `bind` whose values are said by settings of these names, and not drawn.

        Without such an argument, `bind` takes the value of the setting. Here: what is read from a file.
        """
        return set(settings) & self.file_arrays().keys()

    def check_arguments(self, names: Iterable[str]) -> None:
        """Raise `UserError` for the first name that is none of `operator_arguments`: a typo must not be ignored."""
        for name in names:
            if name not in self.operator_arguments:
                known = ", ".join(self.operator_arguments) or "none"
                raise UserError(f"unknown operator argument {name!r} of {self.name}: known are {known}")

    def accept(self, y: Measurement, **arguments: Argument) -> tuple[Operator, Measurement]:
        """The operator and the measurement, (b, c, ...), from what a measurement file holds: y, and `bind`'s arguments.

        Here a problem brings files of other conventions to its own, and warns of a y that can't be what it seems to be.
        Raises what `bind` raises. Raises `UserError`, too, if y shows that an argument is wrong.
        """
        return self.bind(y, **arguments), y

    def export(self, operator: Operator, y: Measurement) -> dict[str, np.ndarray]:
        """What a measurement file holds: `y`, and what `bind` needs besides. `accept` is the inverse."""
        return {"y": y.cpu().numpy(), **self.arguments(operator)}

    def fidelity(self, operator: Operator, y: Measurement) -> Fidelity:
        """The data term of the measurement y. Raises `ValueError` when y does not fit the operator."""
        return LeastSquares.of(operator, y)

    def initial(self, operator: Operator, y: Measurement) -> Images:
        """Where a reconstruction starts: Aᵀy, (b, c, h, w)."""
        return operator.AT(y)

    def simulate(self, x: Images, generator: torch.Generator) -> tuple[Operator, Measurement]:
        """An operator and a noisy measurement of the clean images x, (b, c, h, w) in [0, 1]."""
        operator = self.operator((x.shape[-2], x.shape[-1]), len(x), generator)
        y = operator.A(x)
        return operator, y + self.noise * self.draw_noise(operator, y, generator) if self.noise else y

    def draw_noise(self, operator: Operator, y: Measurement, generator: torch.Generator) -> Measurement:
        """Standard normal noise in the shape of y."""
        return torch.randn(y.shape, generator=generator, dtype=y.dtype)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting and its value; what `problems.make` takes to make this problem again."""
        own = {} if self.own_code is None else {"class": self.own_code}
        return {**own, **asdict(self)}

    @property
    def own_code(self) -> str | None:
        """The dotted path of the class if the user wrote it, see `elder.load`; `None` for the classes of elder."""
        module = type(self).__module__
        return None if module.startswith("elder.") else f"{module}.{type(self).__qualname__}"

    def override(self, settings: Mapping[str, object]) -> Self:
        """This problem with some settings changed. Raises `UserError` for an unknown setting or a wrong type."""
        return replace(self, **{key: self._typed(key, value) for key, value in settings.items()})

    @classmethod
    def _typed(cls, key: str, value: Any) -> object:
        """`value`, perhaps text from a command line, as the type that the setting has."""
        known = {f.name for f in fields(cls)}
        if key not in known:
            raise UserError(f"unknown setting {key!r} of {cls.name}: it takes {', '.join(sorted(known))}")
        hint = typing.get_type_hints(cls)[key]
        options: tuple[type, ...] = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for option in options:
            if (option is float and type(value) is int) or option is type(value):
                return option(value)
            if isinstance(value, str):
                try:
                    return {"true": True, "false": False}[value.lower()] if option is bool else option(value)
                except (ValueError, KeyError):
                    continue
        wanted = " or ".join(KINDS.get(option, option.__name__) for option in options)
        raise UserError(f"setting {key}={value!r} of {cls.name} must be {wanted}")


def check_batch(name: str, values: Shaped[Tensor, "..."], y: Measurement) -> None:
    """Raise `UserError` if an argument with a batch axis is neither for one image nor for as many as y holds.

    values: of (k, l), or with a batch axis of (b, 1, k, l). y: (b, c, ...). `name` is that of the argument.
    """
    if values.ndim == 4 and not (len(values) in (1, len(y)) and values.shape[1] == 1):
        k, m = values.shape[-2:]
        raise UserError(
            f"{name} is {tuple(values.shape)}, but must be ({k}, {m}), or ({len(y)}, 1, {k}, {m}): one for each of the "
            "images of the measurement"
        )
