"""What a training returns beside its model: the metrics of each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

# Gets each step's number and its metrics while a training runs.
Report = Callable[[int, dict[str, float]], None]
T = TypeVar("T")


def silent(step: int, metrics: dict[str, float]) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class History:
    """The metrics of a training: a row for each step, with its number as `step`. Not every row has every metric."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Add the row of a step."""
        self.rows.append({"step": step, **metrics})

    def first(self, name: str) -> float:
        """The metric `name` of the first row that has it. Raises `KeyError` if there is none."""
        return self._values(name)[0]

    def mean(self, name: str) -> float:
        """The mean of the metric `name` over the rows that have it. Raises `KeyError` if there is none."""
        values = self._values(name)
        return sum(values) / len(values)

    def total(self, name: str) -> float:
        """The sum of the metric `name` over the rows that have it."""
        return sum(row.get(name, 0.0) for row in self.rows)

    def _values(self, name: str) -> list[float]:
        values = [row[name] for row in self.rows if name in row]
        if not values:
            raise KeyError(f"no step reported {name}")
        return values


@dataclass(frozen=True, eq=False)
class Trained(Generic[T]):
    """A trained model or regularizer, and how its training went."""

    result: T
    history: History
