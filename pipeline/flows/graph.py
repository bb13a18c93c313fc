"""The stages of dvc.yaml: one for each problem, regularizer or cell, in the order of the graph."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Group:
    """The stages that dvc.yaml writes once.

    over: the section of params.yaml whose entries they belong to; empty if there is one stage, of the group's name.
    """

    name: str
    over: str = ""

    def stage(self, key: str) -> str:
        """The name of one stage, as DVC takes it."""
        return f"{self.name}@{key}" if self.over else self.name


@dataclass
class Selection:
    """The entries of params.yaml that a run works on; those that fail on the way are dropped with what needs them.

    chosen: names of cells; empty for all.
    """

    sections: Mapping[str, Mapping[str, Any]]
    chosen: Collection[str] = ()
    dropped: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.chosen) - self.cells.keys()):
            raise ValueError(f"cells: params.yaml has no cell {', '.join(unknown)}; it has {', '.join(self.cells)}")

    @property
    def cells(self) -> Mapping[str, Mapping[str, Any]]:
        """Every cell of params.yaml."""
        return self.sections.get("cells", {})

    @property
    def left(self) -> list[str]:
        """The chosen cells of which nothing has failed."""
        return [name for name in self.chosen or self.cells if not self._lost(name)]

    @property
    def whole(self) -> bool:
        """Whether these are all cells."""
        return set(self.left) == set(self.cells)

    def keys(self, over: str) -> list[str]:
        """The entries of a section that the cells need; of all cells, those too that no cell names."""
        if over == "cells":
            return self.left
        kind = over.removesuffix("s")
        needed = {self.cells[name].get(kind) for name in self.left}
        return [
            key
            for key in self.sections.get(over, {})
            if (over, key) not in self.dropped and (key in needed or not self.chosen)
        ]

    def drop(self, over: str, key: str) -> None:
        """Leave out an entry, and every cell that needs it."""
        self.dropped.add((over, key))

    def label(self, group: Group, key: str) -> str:
        """A stage's name for people. It shows the problem and the regularizer of a cell."""
        stage = group.stage(key)
        if group.over != "cells":
            return stage
        parts = [str(self.cells[key].get(kind, "")) for kind in ("problem", "regularizer")]
        return stage if all(part in key for part in parts) else f"{stage} ({', '.join(parts)})"

    def stages(self, group: Group) -> list[str]:
        """The stages of a group that are left."""
        return [group.stage(key) for key in (self.keys(group.over) if group.over else [""])]

    def _lost(self, cell: str) -> bool:
        made_of = {("cells", cell), *((f"{kind}s", str(name)) for kind, name in self.cells[cell].items())}
        return bool(made_of & self.dropped)


def read(folder: Path) -> tuple[list[Group], Mapping[str, Mapping[str, Any]]]:
    """The groups of stages in dvc.yaml, and the sections of params.yaml.

    Raises `ValueError` in one line without a dvc.yaml, and for a file that does not hold what it should.
    """
    if not (folder / "dvc.yaml").is_file():
        raise ValueError(f"folder: {folder} has no dvc.yaml; give the folder of the project")
    stages = _load(folder / "dvc.yaml").get("stages", {})
    return list(_groups(stages)), sections(folder)


def parted(groups: Sequence[Group]) -> tuple[list[Group], list[list[Group]], list[Group]]:
    """The groups before the matrix, the matrix, and those after it.

    The matrix is the first unbroken row of groups with a stage for each problem, regularizer or cell. Neighbors over
    the same section are one batch: the stages of one entry need those of no other entry of it. What comes after the
    matrix writes what all cells share: the registry and the report.
    """
    first = next((index for index, group in enumerate(groups) if group.over), len(groups))
    after = next((index for index in range(first, len(groups)) if not groups[index].over), len(groups))
    batches = [list(batch) for _, batch in itertools.groupby(groups[first:after], key=lambda group: group.over)]
    return list(groups[:first]), batches, list(groups[after:])


def sections(folder: Path) -> dict[str, Any]:
    """What params.yaml holds; nothing if there is none. Stages check its settings.

    Raises `ValueError` in one line where a flow could not even find them.
    """
    path = folder / "params.yaml"
    found = _load(path) if path.exists() else {}
    for name in ("cells", "problems", "regularizers", "prepare"):
        if not isinstance(found.get(name, {}), dict):
            raise ValueError(f"{name}: {found[name]!r} in params.yaml must be a section, with settings below it")
    for name, cell in found.get("cells", {}).items():
        if not isinstance(cell, dict):
            raise ValueError(f"cells.{name}: {cell!r} in params.yaml must be a problem and a regularizer")
    return found


def _load(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {}


def _groups(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[Group]:
    for name, stage in stages.items():
        over = stage.get("foreach", "")
        yield Group(name, over.removeprefix("${").removesuffix("}"))
