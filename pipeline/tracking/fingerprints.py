"""Fingerprints of what a result is made from: the code behind a stage, and the files that it reads."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from elder import released
from pipeline import ROOT
from pipeline.settings import params

PACKAGES = ("elder", "stages", "pipeline")
# Modules that bring settings in and logs out. They do not affect a result, so a change in them re-runs nothing.
GLUE = (
    "pipeline.settings.explain",
    "pipeline.settings.params",
    "pipeline.tracking.experiments",
    "pipeline.tracking.logs",
    "pipeline.tracking.recorder",
    "stages.command",
    "stages.tracked",
)
# A module that another one reads as a file. No import tells of it.
READ_BY = {"pipeline.registry.packaging": "pipeline.registry.served_model"}


def named(stage: str, entry: str = "") -> str:
    """The name of a stage with the entry of params.yaml that it belongs to: finetune/CELL, or prepare alone."""
    return f"{stage}/{entry}" if entry else stage


@dataclass(frozen=True)
class Reads:
    """What a stage reads, beside its settings: files or folders, and its own code."""

    stage: str  # as `named` gives it
    paths: tuple[Path, ...]
    manifest: Path | None  # the file with the manifest of the code; if `None`, the manifest is found out
    data: tuple[Path, ...] = ()  # those of the paths that are data sets

    @cached_property
    def hashes(self) -> dict[Path, str]:
        """The `content_hash` of every path."""
        return {path: content_hash(path) for path in self.paths}

    @cached_property
    def code(self) -> str:
        """The manifest: a line with the fingerprint and the name of each module."""
        return self.manifest.read_text() if self.manifest else manifests(params.read())[self.stage]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the code and of the content of every file. Where the paths lie does not affect it."""
        parts = [hashlib.sha256(self.code.encode()).hexdigest(), *(self.hashes[path] for path in self.paths)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def of_stages(code: Mapping[str, str], stages: Sequence[str], entries: Sequence[str]) -> dict[str, str]:
    """Those of the manifests that belong to the stages, for these entries of params.yaml."""
    names = [named(stage, entry) for stage in stages for entry in entries]
    return {name: code[name] for name in names if name in code}


def manifests(chosen: params.Params) -> dict[str, str]:
    """The code behind each stage: a line with the fingerprint and the name of each module that it uses.

    Stages are called as by `named`. The user's own problems, in `own_code`, belong to every stage that uses problems.
    The files that the settings of a stage name belong to it, and the released denoiser that a pre-training starts from.
    No code is behind the stages of a problem or a regularizer that no cell uses: they compute nothing.

    A module counts if the stage imports it, directly or through other modules, or reads it (`READ_BY`). Its fingerprint
    is that of its syntax tree, so comments, docstrings and layout do not affect it. Data files beside a module count
    too, by their content.
    """
    import grimp

    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    stages = sorted(graph.find_modules_that_directly_import("stages.command"))
    for module in GLUE:
        graph.remove_module(module)
    own_code = Path(chosen.own_code)
    own = sorted(own_code.rglob("*.py")) if own_code.is_dir() else [own_code]
    own_lines = [f"{digest(path.read_text())}  {path.as_posix()}\n" for path in own if not _in_packages(path)]
    texts = {}
    for module in stages:
        stage, imported = module.removeprefix("stages."), {module, *graph.find_upstream_modules(module)}
        used = sorted(imported | {read for reader, read in READ_BY.items() if reader in imported})
        lines = [f"{code}  {name}\n" for part in used for name, code in of_module(part).items()]
        lines += own_lines if "elder.problems" in used else []
        entries = [name for other, name in chosen.stages if other == stage]
        unused = chosen.unused(stage)
        for name in entries or [""]:
            more = _of_settings(chosen, stage, name) if entries or stage == "prepare" else []
            texts[named(stage, name)] = "" if name in unused else "".join(dict.fromkeys([*lines, *more]))
    return texts


def _of_settings(chosen: params.Params, stage: str, name: str) -> list[str]:
    """Lines for what the settings of a stage name."""
    lines = [f"{content_hash(path)[:16]}  {path.as_posix()}\n" for path in chosen.files_of(stage, name)]
    if stage == "pretrain":
        # `network` is that of the regularizers without one of their own, and some are built over none.
        described = json.dumps(chosen.description(name, 3 if chosen.prepare.color else 1), sort_keys=True)
        lines.append(f"{hashlib.sha256(described.encode()).hexdigest()[:16]}  the description of {name}\n")
        if (start := chosen.initial_released(name)) is not None:
            lines.append(f"{content_hash(released.folder(start))[:16]}  released:{start}\n")
    return lines


def _in_packages(path: Path) -> bool:
    return path.resolve().relative_to(ROOT).parts[0] in PACKAGES if path.resolve().is_relative_to(ROOT) else False


def of_module(module: str) -> dict[str, str]:
    """The fingerprint of a module, and those of the data files in its folder and in subfolders without modules."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin)
    folders = [source.parent]
    if module != released.__name__:  # a released model affects the stage that starts from it, and no other
        folders += [path for path in source.parent.iterdir() if path.is_dir() and not any(path.glob("*.py"))]
    data = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
    package = module if spec.submodule_search_locations else module.rpartition(".")[0]
    found = {
        f"{package}/{path.relative_to(source.parent)}": path for path in data if path.suffix not in (".py", ".pyc")
    }
    return {
        module: digest(source.read_text()),
        **{name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in found.items()},
    }


def digest(source: str) -> str:
    """The SHA-256 of the syntax tree of Python source, without docstrings, as 16 hexadecimal digits."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """A hash of a file's bytes, or of all files below a folder with their names."""
    hashed = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        hashed.update(file.relative_to(path).as_posix().encode() if path.is_dir() else b"")
        hashed.update(hashlib.sha256(file.read_bytes()).digest())
    return hashed.hexdigest()
