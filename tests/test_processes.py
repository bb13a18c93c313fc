"""A training over two processes, each of which computes its share in parts, is the training of one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trainings
from conftest import ROOT

from elder import UserError, io
from elder.training.processes import ALONE, Processes

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module", params=[6, pytest.param(20, marks=pytest.mark.slow)])
def both(request, tmp_path_factory) -> dict[str, tuple[dict, Path]]:
    """What one process gave and left, and what two gave and left, which also resumed what the one had left."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alone", "together")}
    alone = trained(folders["alone"], request.param)
    shutil.copytree(folders["alone"] / "left", folders["together"] / "resumed")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": str(Path(sys.executable).parent)}
    script = [str(ROOT / "tests" / "trainings.py"), str(folders["together"]), str(request.param)]
    done = subprocess.run([*LAUNCH, *script], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    together = io.read_json(folders["together"] / "results.json")
    return {"alone": (alone, folders["alone"]), "together": (together, folders["together"])}


def trained(folder: Path, steps: int, **options: bool) -> dict[str, list]:
    """In one thread, as each of two processes: sums that other threads divide otherwise round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return trainings.trainings(folder, ALONE, steps, **options)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)


def assert_equal(found: list[dict], expected: list[dict]) -> None:
    """Every metric of every step, to within rounding."""
    assert len(found) == len(expected)
    for row, reference in zip(found, expected, strict=True):
        assert row == {name: pytest.approx(value, rel=1e-5, abs=1e-9) for name, value in reference.items()}


@pytest.mark.parametrize("training", ["pretrain", "finetune", "implicit", "mse", "skip"])
def test_two_processes_train_as_one_does(training, both):
    found = both["together"][0][training]
    assert_equal(found, both["alone"][0][training])
    if training == "finetune":
        assert {"loss", "spectral_radius", "val_psnr"} <= {name for row in found for name in row}
        scales = [row["step_size"] * row["weight"] for row in found[1:]]
        penalties = [row["penalty_weight"] for row in found if "penalty_weight" in row]
        # What adapts has moved, by more than rounding.
        assert all(max(adapted) > 1.05 * min(adapted) for adapted in (scales, penalties))
    if training == "implicit":
        assert all(row["exact"] == 1 for row in found[1:])  # every gradient is that of GMRES
    if training == "skip":
        assert any(row["left_out"] == 0.5 and row["skipped"] == 0 for row in found[1:])


def test_two_processes_have_the_parameters_of_one(both):
    alone, together = (
        torch.load(folder / "left" / "finetune" / "state.pt", weights_only=True)["parts"] for _, folder in both.values()
    )
    for name in ("theta", "averaged"):
        torch.testing.assert_close(together[name], alone[name], rtol=0, atol=1e-10)


def test_either_resumes_what_the_other_left(both, tmp_path):
    (expected, _), (found, folder) = both["alone"], both["together"]
    steps = len(expected["pretrain"])
    shutil.copytree(folder / "left", tmp_path / "resumed")
    state = torch.load(tmp_path / "resumed" / "finetune" / "state.pt", weights_only=True)
    assert state["numbers"]["step"] == steps - 2
    back = trained(tmp_path, steps, whole=False)
    for training in ("pretrain", "finetune"):
        for resumed in (found, back):
            assert_equal(resumed[f"{training}, resumed"], expected[training])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_image_is_in_one_share(count):
    for total in (5, 6, 7, 20):
        shares = [range(total)[Processes(rank, count).share(total)] for rank in range(count)]
        assert [i for share in shares for i in share] == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("micro_batch", [0, 1, 2, 3, 9])
def test_a_share_is_computed_in_parts(micro_batch):
    for rank in range(2):
        processes = Processes(rank, 2, micro_batch=micro_batch)
        share, parts = range(11)[processes.share(11)], [range(11)[part] for part in processes.parts(11)]
        assert [i for part in parts for i in part] == list(share)
        assert max(map(len, parts)) <= (micro_batch or 11)
        assert len(parts) == (-(-len(share) // micro_batch) if micro_batch else 1)


def test_a_batch_too_small_for_the_processes_is_refused():
    with pytest.raises(UserError, match=r"^batch=2: 3 processes need an image each"):
        Processes(0, 3).check_batch(2)
    Processes(0, 3).check_batch(3)


@pytest.mark.slow
def test_a_stage_of_two_processes_writes_what_it_writes_alone(project):
    project.only_least_squares()
    # Each step of a solve of this hardly trained energy amplifies the rounding of float32 about tenfold.
    project.change("finetune", max_steps=3)
    for target in ("pretrain@least_squares", "tune@csmri-least_squares"):
        project.run("dvc", "repro", target)
    cell = "csmri-least_squares"
    reads = [
        "--images",
        "data/prepared",
        "--measurements",
        "data/measurements/csmri",
        "--tuned",
        f"models/tuned/{cell}",
    ]
    own = {"problem": "csmri", "regularizer": "least_squares", "finetune": {"seed": 9}}
    project.replace(cells={cell: own})
    made = {}
    for name, count in (("alone", 1), ("together", 2)):
        project.change("compute", processes=count)
        writes = ["--out", f"{name}/model", "--metrics", f"{name}/metrics.json", "--curve", f"{name}/curve.csv"]
        done = project.run(sys.executable, "-m", "stages.finetune", "--cell", cell, *reads, *writes)
        assert done.stdout.count("overrides finetune") == 1
        made[name] = io.read_json(project.folder / name / "metrics.json")
        assert (project.folder / name / "model" / "weights.safetensors").exists()
    assert made["together"] == {key: pytest.approx(value, rel=1e-3) for key, value in made["alone"].items()}
    assert not list((project.folder / ".checkpoints").rglob("state.pt"))


def test_what_fails_in_two_processes_is_told_in_one_line(project):
    project.change("compute", processes=2)
    project.change("pretrain", batch=1)
    project.run("dvc", "repro", "prepare")
    writes = ["--out", "model", "--metrics", "metrics.json", "--curve", "curve.csv"]
    stage = ["-m", "stages.pretrain", "--regularizer", "least_squares", "--images", "data/prepared", *writes]
    done = project.run(sys.executable, *stage, check=False)
    assert done.returncode == 1
    line = "pretrain: batch=1: 2 processes need an image each; start fewer, or raise batch"
    assert set(done.stderr.splitlines()) == {line}
    assert not (project.folder / "model").exists()
