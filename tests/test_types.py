"""Types and shapes are checked in the tests, and nowhere else; classes are abstract or final."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import checked
import pytest
import torch
from conftest import ROOT
from jaxtyping import TypeCheckError

import elder
from elder.fidelity import LeastSquares
from elder.operators import Identity, MaskedFourier
from elder.solvers.inertial import Momentum
from elder.tensors import dot

MASK = torch.ones(6, 5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: MaskedFourier(MASK).A(torch.ones(6, 5)),
        lambda: dot(torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 5)),
        lambda: LeastSquares.of(Identity(), torch.ones(2, 1, 4, 4)).prox(torch.ones(2, 1, 4, 4), torch.ones(3)),
        lambda: Momentum(torch.ones(2, 1, 4, 4), torch.ones(3, dtype=torch.float64)),
    ],
    ids=["a rank", "two sizes", "a step for each image", "the fields of a record"],
)
def test_a_wrong_shape_is_caught(call):
    with pytest.raises(TypeCheckError, match="Type-check error whilst checking the parameters"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: MaskedFourier(MASK).AT(torch.ones(1, 1, 6, 5)),
        lambda: MaskedFourier(MASK).A(torch.ones(1, 1, 6, 5, dtype=torch.long)),
        lambda: Momentum(torch.ones(2, 1, 4, 4), torch.ones(2)),
    ],
    ids=["real k-space", "whole numbers", "a single-precision count"],
)
def test_a_wrong_dtype_is_caught(call):
    with pytest.raises(TypeCheckError, match="Type-check error whilst checking the parameters"):
        call()


def test_a_wrong_result_is_caught():
    class Flat(Identity):
        def normal(self, x):
            return x.flatten(1)

    term = LeastSquares.of(Flat(), torch.ones(2, 1, 4, 4))
    with pytest.raises(TypeCheckError, match=r"the return value of elder.fidelity.least_squares.LeastSquares.hessian"):
        term.hessian(torch.ones(2, 1, 4, 4))


def test_the_first_calls_are_checked_in_each_test():
    x = torch.ones(1, 1, 3, 3)
    for _ in range(checked.CALLS + 2):
        dot(x, x)
    assert torch.equal(dot(x, torch.ones(1, 1, 1, 3)), torch.tensor([9.0], dtype=torch.float64))
    checked.restart()
    with pytest.raises(TypeCheckError):
        dot(x, torch.ones(1, 1, 1, 3))


def test_nothing_is_checked_elsewhere():
    code = (
        "import sys, torch; from elder import tensors; "
        "assert tensors.dot(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 3)) == 9; "
        "assert not hasattr(tensors.dot, '__wrapped__'); assert 'beartype' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def library_classes() -> list[type]:
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(elder.__path__, "elder.")]
    found = {c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__}
    return sorted(found, key=lambda c: (c.__module__, c.__qualname__))


def test_classes_are_abstract_or_final():
    classes = library_classes()
    assert len(classes) > 50
    concrete = {
        f"{c.__name__}({base.__name__})"
        for c in classes
        for base in c.__bases__
        if base.__module__.startswith("elder.")
        and not inspect.isabstract(base)
        and not getattr(base, "_is_protocol", 0)
    }
    assert not concrete
