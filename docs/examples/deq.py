"""Operator, energy, solver and implicit gradient together, without a pipeline: `python docs/examples/deq.py`.

A small energy is pre-trained as a denoiser on one photograph, and then fine-tuned by deep equilibrium learning to fill
in missing pixels. It takes a minute or two on a CPU.
"""

from __future__ import annotations

import skimage.data
import torch
from torch import Tensor

from elder import regularizers
from elder.evaluation.quality import psnr
from elder.fidelity import LeastSquares
from elder.implicit import ImplicitGradient
from elder.io import to_tensor
from elder.linear import JACOBIAN_FREE, MINRES
from elder.objective import Objective
from elder.operators import Masking
from elder.solvers import fixed_point
from elder.training.patches import Patches
from elder.training.pretrain import Pretraining, pretrain

STEPS, BATCH, SIDE = 30, 4, 32
LAMBDA, SIGMA, NOISE = 0.05, 0.1, 0.02


def measure(x: Tensor, generator: torch.Generator) -> LeastSquares:
    """Half of the pixels of x, (b, c, h, w), with some noise, as a data term."""
    mask = (torch.rand((len(x), 1, *x.shape[-2:]), generator=generator) < 0.5).to(x.dtype)
    operator = Masking(mask)
    return LeastSquares.of(operator, operator.A(x + NOISE * torch.randn(x.shape, generator=generator)))


def reconstruct(energy: regularizers.Energy, term: LeastSquares) -> tuple[Objective, Tensor, Tensor]:
    """The minimizer of f(x) = g(x) + λ h(x): the objective, the fixed points, and which images converged."""
    objective = Objective(term, energy, torch.tensor(LAMBDA), torch.tensor(SIGMA))
    start = term.operator.AT(term.y)
    solution = fixed_point(objective, start, torch.tensor(1 / LAMBDA), tol=1e-3, max_steps=60)
    return objective, solution.x, solution.succeeded


def quality(energy: regularizers.Energy, truth: Tensor) -> float:
    """PSNR in dB of the reconstruction of a picture."""
    _, x, _ = reconstruct(energy, measure(truth, torch.Generator().manual_seed(9)))
    return float(psnr(x, truth))


def main() -> tuple[float, float]:
    """Train, and return the PSNR on a test picture before and after DEQ training."""
    torch.manual_seed(0)
    picture = to_tensor(skimage.data.camera().astype("float32") / 255)[..., ::2, ::2]
    test = to_tensor(skimage.data.coins().astype("float32") / 255)[..., 60:156, 60:156]
    patches = Patches([picture], SIDE, ["camera"])
    energy = regularizers.make("least_squares", network={"name": "dncnn", "channels": 1, "width": 16, "depth": 4})
    assert isinstance(energy, regularizers.Energy)
    pretrain(energy, patches, Pretraining(steps=200, batch=8, patch=SIDE))
    before = quality(energy, test)

    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-3)
    gradient = ImplicitGradient(MINRES(tol=0.05, max_steps=30), fallback=JACOBIAN_FREE)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        truth = patches.draw(BATCH, generator)
        # The fixed point is found without recording, so memory does not grow with the number of iterations.
        objective, x, solved = reconstruct(energy, measure(truth, generator))
        attached, _ = gradient.attach(objective, x, torch.tensor(1 / LAMBDA), solved=solved)
        loss = (attached - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, quality(energy, test)


if __name__ == "__main__":
    before, after = main()
    print(f"pre-trained {before:.2f} dB, after DEQ training {after:.2f} dB")
