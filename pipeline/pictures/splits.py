"""Which file goes into which split: at random by shares, by folders, or by a list; groups of files stay together."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from elder.errors import UserError

SPLITS = ("train", "validation", "test")


def at_random(names: Sequence[str], groups: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of each name. All names of a group get one split, and each split gets at least one group.

    A group is placed by a hash of its name and the seed, so that it keeps its split when others come and go. Only
    where a split would stay empty, the group that is nearest to its share moves.

    Raises:
        UserError: for less than three groups.
    """
    places = {group: _uniform(f"{seed}/{group}") for group in sorted(set(groups))}
    if len(places) < 3:
        raise UserError(f"{len(places)} files or groups of files: train, validation and test need 3")
    ends, start = {}, 0.0
    for split in ("validation", "test"):
        ends[split] = (start, start + shares[split])
        start += shares[split]
    ends["train"] = (start, 1.0)
    chosen = {g: next(s for s, (low, high) in ends.items() if low <= u < high) for g, u in places.items()}
    for split, (low, high) in ends.items():
        if split not in chosen.values():
            spare = [g for g in places if list(chosen.values()).count(chosen[g]) > 1]
            nearest = min(spare, key=lambda g: min(abs(places[g] - low), abs(places[g] - high)))
            chosen[nearest] = split
    return {name: chosen[group] for name, group in zip(names, groups, strict=True)}


def by_folders(names: Sequence[str]) -> dict[str, str]:
    """The split of each name: its first folder."""
    return {name: name.split("/")[0] for name in names}


def by_list(path: Path) -> dict[str, str]:
    """The lines `name,split` of a CSV file, names relative to the folder. Blanks around them do not matter.

    Raises `UserError` for a file that is missing, is no CSV file in UTF-8, or lacks a column or an entry.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, skipinitialspace=True) if any(cell.strip() for cell in line)]
    except FileNotFoundError:
        raise UserError(f"prepare.split={path} must be random, folders or a CSV file that exists") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    columns = [cell.strip() for cell in lines[0]] if lines else []
    for column in ("name", "split"):
        if column not in columns:
            raise UserError(f"{path}: lacks the column {column}; its columns must be name and split")
    name, split = columns.index("name"), columns.index("split")
    chosen: dict[str, str] = {}
    for number, line in enumerate(lines[1:], 2):
        if len(line) < len(columns):
            raise UserError(f"{path}: row {number} has {len(line)} columns; it needs {len(columns)}")
        if chosen.setdefault(line[name].strip(), line[split].strip()) != line[split].strip():
            raise UserError(f"{path}: {line[name].strip()} has two splits")
    return chosen


def groups_of(names: Sequence[str], rule: str) -> list[str]:
    """The group of each name, a path relative to the source.

    rule: empty, each file is a group of its own; `folder`, the folder that it lies in; else a regular expression whose
    first group (or whole match) in the path names it. Raises `UserError` for a path that it does not match.
    """
    if not rule:
        return list(names)
    if rule == "folder":
        return [str(Path(name).parent) for name in names]
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise UserError(f"prepare.group={rule!r}: neither folder nor a regular expression ({error})") from None
    found = []
    for name in names:
        match = pattern.search(name)
        if match is None:
            raise UserError(f"prepare.group={rule!r} does not match {name}: every file must belong to a group")
        found.append(match.group(1) if pattern.groups and match.group(1) is not None else match.group())
    return found


def refuse_torn(split: Mapping[str, str], names: Sequence[str], groups: Sequence[str]) -> None:
    """Raise `UserError` for a group whose files lie in two splits."""
    where = defaultdict(set)
    for name, group in zip(names, groups, strict=True):
        where[group].add(split[name])
        if len(where[group]) > 1:
            raise UserError(f"the group {group} is in {' and '.join(sorted(where[group]))}: put it into one split")


def _uniform(text: str) -> float:
    """A number in [0, 1) from a text; the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
