"""Fingerprints of the code behind each stage, so that DVC re-runs a stage when its code changes, and only then."""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import shutil
from pathlib import Path

import grimp

from stages import command

PACKAGES = ("elder", "stages", "pipeline")
# Modules that bring settings in and logs out. They do not affect a result, so a change in them re-runs nothing.
GLUE = ("pipeline.params", "pipeline.settings", "pipeline.tracking", "stages.command")


def main(arguments: argparse.Namespace) -> None:
    """Write one file for each stage: a line with the fingerprint and the name of each module that it uses.

    A module counts if the stage imports it, directly or through other modules. Its fingerprint is that of its syntax
    tree, so comments, docstrings and layout do not affect it. Data files beside a module count too, by their content.
    """
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    stages = sorted(graph.find_modules_that_directly_import("stages.command"))
    for module in GLUE:
        graph.remove_module(module)
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    for stage in stages:
        used = sorted({stage, *graph.find_upstream_modules(stage)})
        lines = [f"{code}  {name}\n" for module in used for name, code in fingerprints(module).items()]
        name = stage.removeprefix("stages.")
        (arguments.out / f"{name}.txt").write_text("".join(dict.fromkeys(lines)))


def fingerprints(module: str) -> dict[str, str]:
    """The fingerprint of a module, and those of the data files in its folder and in subfolders without modules."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin)
    folders = [source.parent]
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


if __name__ == "__main__":
    command.run(main, "out")
