"""The code in the documentation runs."""

from __future__ import annotations

import importlib.util
import re
import sys
import types

import pytest
from conftest import ROOT


def test_the_snippets_of_how_to_add_a_part_run_in_their_order(monkeypatch):
    text = (ROOT / "docs" / "adding.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    made = ["Gain(Operator)", "Weighted(Fidelity)", "Quartic(Energy)", "OneFilter(Network)", "Relaxed"]
    parts = [*(f"class {name}:" for name in made), "def main(arguments: argparse.Namespace)"]
    assert [part in block for part, block in zip(parts, blocks, strict=True)] == [True] * len(parts)
    module = types.ModuleType("adding")
    monkeypatch.setitem(sys.modules, "adding", module)  # where dataclasses look up their annotations
    for block in blocks:
        exec(compile(block, "docs/adding.md", "exec"), vars(module))  # noqa: S102  our own documentation


def test_the_example_gains_by_deq_training():
    spec = importlib.util.spec_from_file_location("deq", ROOT / "docs" / "examples" / "deq.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, after = module.main()
    assert after > before + 0.3


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("*.md")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing
