"""Models that come with the package: found by name, listed, loaded, started from, and made with a card."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

import elder
from elder import UserError, cli, io, problems, regularizers, released
from elder.errors import DataWarning
from elder.evaluation.evaluate import evaluate
from elder.evaluation.results import mean
from elder.model import bundle, registry
from elder.problems import samples
from elder.training.initial import initialize, told
from elder.training.pretrain import denoising_psnr
from pipeline import preset, release
from pipeline.settings import params
from pipeline.tracking import fingerprints

DESCRIPTION = {"name": "least_squares", "network": {"name": "dncnn", "channels": 1, "width": 6, "depth": 3}}
CARD = release.Card("Removes noise.", "six photographs", "public domain")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(released, "FOLDER", tmp_path / "released")
    monkeypatch.setattr(release, "_commit", lambda: "0123abc")
    monkeypatch.setattr(release, "_made_here", lambda source: True)  # DVC takes seconds
    monkeypatch.chdir(ROOT)
    return tmp_path / "released"


@pytest.fixture
def trained(tmp_path):
    """A regularizer as `pretrain` writes it."""
    torch.manual_seed(3)
    config = {"regularizer": DESCRIPTION, "metadata": {"stage": "pretrain", "denoising_psnr": {"0.1": 27.5}}}
    bundle.write(tmp_path / "trained", regularizers.make(**DESCRIPTION), config)
    return tmp_path / "trained"


@pytest.fixture(scope="module")
def pictures(photographs):
    paths = io.list_sources(photographs)[:2]
    return [path.stem for path in paths], [io.to_tensor(io.read_image(path)) for path in paths]


@pytest.fixture
def shipped(shelf, trained, pictures):
    release.release(trained, "denoise-small", CARD, *pictures)
    return shelf / "denoise-small"


def test_half_precision_is_taken_where_it_costs_nothing(shipped, trained):
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (shipped, trained)]
    assert sizes[0] < 0.7 * sizes[1]
    card = (shipped / "card.md").read_text()
    for text in ("released:denoise-small", "six photographs", "public domain", "0123abc", "27.5", "learning_rate"):
        assert text in card
    facts = released.config("denoise-small")["metadata"]["card"]
    assert facts["precision"] == "float16"
    assert facts["measured"]["float16"] == pytest.approx(facts["measured"]["float32"], abs=0.01)
    assert f"{facts['psnr']:.2f} dB on 2 validation pictures" in card


MADE_HERE = release._made_here


def test_the_recipe_of_a_bundle_from_elsewhere_is_not_known(shelf, trained, pictures, monkeypatch):
    monkeypatch.setattr(release, "_made_here", MADE_HERE)
    with pytest.warns(DataWarning, match="no output of this project"):
        release.release(trained, "denoise-small", CARD, *pictures)
    card = (shelf / "denoise-small" / "card.md").read_text()
    assert "Not known: the bundle was no output" in card
    assert "learning_rate" not in card


@pytest.mark.parametrize("factors", [(1e-7, 1e4, 3e4), (1, 1, 1e9)], ids=["digits are lost", "overflow"])
def test_float32_is_taken_where_half_precision_costs_quality(factors, shelf, tmp_path, pictures):
    torch.manual_seed(3)
    regularizer: Any = regularizers.make(**DESCRIPTION)
    with torch.no_grad():
        for conv, factor in zip(regularizer.network.convs, factors, strict=True):
            conv.weight.mul_(factor)
    bundle.write(tmp_path / "scaled", regularizer, {"regularizer": DESCRIPTION, "metadata": {"stage": "pretrain"}})
    facts = release.release(tmp_path / "scaled", "scaled", CARD, *pictures)
    assert facts["precision"] == "float32"
    model = elder.load("released:scaled")
    for a, b in zip(model.regularizer.parameters(), regularizer.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_is_loaded_by_name(shipped, trained):
    assert released.names() == ["denoise-small"]
    model, (original, _) = elder.load("released:denoise-small"), bundle.read(trained)
    assert model.problem.name == "denoise"
    with pytest.raises(UserError, match="has no problem yet"):
        elder.load(trained)
    for a, b in zip(model.regularizer.parameters(), original.parameters(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_an_unknown_name_is_answered_with_those_there_are(shipped):
    with pytest.raises(UserError, match="released:other: no such model; there are denoise-small"):
        elder.load("released:other")


def test_models_are_listed_with_their_facts_where_mlflow_is_missing(shipped, monkeypatch, capsys):
    monkeypatch.setattr(registry, "available", lambda: False)
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "released:denoise-small: Removes noise.",
        "six photographs",
        "public domain",
        "float16",
        "pip install",
    ):
        assert text in printed
    assert cli.main(["models", "--card", "denoise-small"]) == 0
    assert capsys.readouterr().out == (shipped / "card.md").read_text()
    assert cli.main(["models", "--card", "other"]) == 1


def test_a_file_that_may_not_be_passed_on_stays_behind(shelf, small_model, tmp_path, mask, pictures):
    """`--set mask=radial` in its place; the model is measured so, too."""
    settings = {"mask": str(mask), "ratio": 0.3}
    model = replace(small_model, problem=problems.make("csmri", settings), metadata={"stage": "finetune"})
    model.save(tmp_path / "bundle")
    facts = release.release(
        tmp_path / "bundle", "csmri-small", CARD, *pictures, changes={"mask": "radial", "ratio": "0.4"}
    )
    assert sorted(path.name for path in (shelf / "csmri-small").iterdir()) == [
        "card.md",
        "config.json",
        "weights.safetensors",
    ]
    there = elder.load("released:csmri-small")
    assert there.problem.settings == {**model.problem.settings, "mask": "radial", "ratio": 0.4}
    results = evaluate(there, samples.measure(there.problem, *pictures))
    assert facts["psnr"] == pytest.approx(mean(results)["psnr"], abs=1e-3)
    with pytest.raises(UserError, match="unknown setting 'masks' of csmri: it takes"):
        release.release(tmp_path / "bundle", "csmri-small", CARD, *pictures, changes={"masks": "radial"})


def test_a_model_with_a_mask_of_its_own_reconstructs_from_the_command_line(
    shelf, small_model, tmp_path, mask, pictures, capsys
):
    """The mask is in the released folder, so that a measurement of k-space alone is enough."""
    model = replace(small_model, problem=problems.make("csmri", {"mask": str(mask)}), metadata={"stage": "finetune"})
    model.save(tmp_path / "bundle")
    facts = release.release(tmp_path / "bundle", "csmri-small", CARD, *pictures)
    assert facts["converged"] is not None
    mask_there = shelf / "csmri-small" / "mask.npy"
    assert np.array_equal(np.load(mask_there), np.load(mask))
    mask.unlink()
    (sample,) = samples.measure(elder.load("released:csmri-small").problem, *([part[0]] for part in pictures))
    np.save(tmp_path / "y.npy", sample.y[0, 0].numpy())
    out = tmp_path / "x.npy"
    arguments = ["reconstruct", "released:csmri-small", "--measurement", str(tmp_path / "y.npy"), "--out", str(out)]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    assert np.load(out).shape == (40, 48)


def test_training_starts_from_a_denoiser_of_the_same_architecture(shipped, trained):
    torch.manual_seed(8)
    regularizer = regularizers.make(**DESCRIPTION)
    before = [p.clone() for p in regularizer.parameters()]
    assert initialize(regularizer, DESCRIPTION, "none") is None
    assert all(torch.equal(a, b) for a, b in zip(before, regularizer.parameters(), strict=True))
    spelled = {**DESCRIPTION, "network": {**DESCRIPTION["network"], "activation": "elu"}}  # the default
    assert initialize(regularizer, spelled, "released") == "released:denoise-small"
    expected = elder.load("released:denoise-small").regularizer.parameters()
    assert all(torch.equal(a, b) for a, b in zip(expected, regularizer.parameters(), strict=True))


def test_another_released_denoiser_re_runs_what_starts_from_it_and_nothing_else(shipped):
    raw = params.raw()
    raw["regularizers"] = {"least_squares": {"pretrain": {"init": "released"}}, "red": {}}
    raw["cells"] = {f"inpaint-{name}": {"problem": "inpaint", "regularizer": name} for name in raw["regularizers"]}
    raw["network"] = {key: value for key, value in DESCRIPTION["network"].items() if key != "channels"}
    chosen = params.validated(params.Params, raw)
    assert [chosen.initial_released(name) for name in chosen.regularizers] == ["denoise-small", None]
    before = fingerprints.manifests(chosen)
    weights = shipped / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    after = fingerprints.manifests(chosen)
    assert {stage for stage in before if before[stage] != after[stage]} == {"pretrain/least_squares"}


def test_training_keeps_its_weights_if_no_denoiser_fits_and_says_so(shipped):
    other = {**DESCRIPTION, "network": {**DESCRIPTION["network"], "width": 7}}
    start = initialize(regularizers.make(**other), other, "released")
    assert start is None
    assert "random weights; no released denoiser has this" in told(start, "released")
    assert told(start, "none") == "starts from random weights"


def test_a_model_after_deq_training_is_no_start_for_pretraining(shelf, small_model, tmp_path, pictures):
    model = replace(small_model, problem=problems.make("denoise"), metadata={"stage": "finetune"})
    model.save(tmp_path / "bundle")
    release.release(tmp_path / "bundle", "denoise-deq", CARD, *pictures)
    assert released.denoiser(small_model.description) is None


def test_the_card_of_a_denoiser_that_solves_tells_where_solves_end_and_what_one_step_gives(
    shelf, small_model, tmp_path, pictures
):
    """Both, since the one is what `elder reconstruct` reaches, and the other what the weights were trained for."""
    model = replace(small_model, problem=problems.make("denoise"), metadata={"stage": "tune"})
    model.save(tmp_path / "bundle")
    facts = release.release(tmp_path / "bundle", "denoise-tuned", CARD, *pictures)
    results = evaluate(model, samples.measure(model.problem, *pictures))
    assert facts["psnr"] == pytest.approx(mean(results)["psnr"], abs=0.01)
    assert facts["one_step"] == pytest.approx(denoising_psnr(model.regularizer, pictures[1], 0.1), abs=0.01)
    card = (shelf / "denoise-tuned" / "card.md").read_text()
    assert f"By one step, x − ∇h(x, σ), at σ = 0.1: {facts['one_step']:.2f} dB on these pictures." in card
    assert released.denoiser(small_model.description) == "denoise-tuned"


def test_a_model_that_is_released_again_replaces_the_whole_folder(shipped, trained, pictures):
    (shipped / "mask.npy").write_bytes(b"of an earlier release")
    release.release(trained, "denoise-small", CARD, *pictures)
    assert sorted(path.name for path in shipped.iterdir()) == ["card.md", "config.json", "weights.safetensors"]
    assert [path.name for path in shipped.parent.iterdir()] == ["denoise-small"]
    assert not list(shipped.parent.parent.glob(".released-*"))


def test_training_starts_from_a_bundle(trained):
    torch.manual_seed(8)
    regularizer = regularizers.make(**DESCRIPTION)
    assert initialize(regularizer, DESCRIPTION, str(trained)) == str(trained)
    expected = bundle.read(trained)[0].parameters()
    assert all(torch.equal(a, b) for a, b in zip(expected, regularizer.parameters(), strict=True))
    other = {**DESCRIPTION, "network": {**DESCRIPTION["network"], "width": 7}}
    with pytest.raises(UserError, match="another regularizer or network"):
        initialize(regularizers.make(**other), other, str(trained))


@pytest.mark.parametrize("name", ["../outside", "", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(name, shelf, trained, pictures):
    with pytest.raises(UserError, match="is no name of a released model"):
        release.release(trained, name, CARD, *pictures)


def test_a_released_model_is_replaced_only_on_demand(shelf, trained, pictures, monkeypatch, capsys):
    release.release(trained, "denoise-small", CARD, *pictures)
    before = (shelf / "denoise-small" / "card.md").read_bytes()
    arguments = ["release", str(trained), "denoise-small", "--about=a", "--data=d", "--terms=t"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="1"):
        release.main()
    assert "--replace puts this one in its place" in capsys.readouterr().err
    assert (shelf / "denoise-small" / "card.md").read_bytes() == before


def test_a_model_that_is_too_large_is_not_released(shelf, trained, pictures, monkeypatch):
    monkeypatch.setattr(release, "LARGEST", 100)
    with pytest.raises(UserError, match=r"large: 0\.0 MB in float16; a released model has 0\.0 MB at most"):
        release.release(trained, "large", CARD, *pictures)
    assert released.names() == []


def test_every_released_model_loads_and_has_a_card():
    """Those that are in the repository."""
    for name in released.names():
        model, folder = elder.load(f"released:{name}"), released.folder(name)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 1.1 * release.LARGEST
        assert {"about", "data", "terms", "commit", "psnr"} <= model.metadata["card"].keys()
        assert f"released:{name}" in (folder / "card.md").read_text()


def test_the_wheel_takes_released_models_along():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for file in ("config.json", "weights.safetensors", "card.md", "mask.npy"):
        assert any(fnmatch.fnmatch(f"name/{file}", pattern) for pattern in patterns["elder.released"])


def test_a_commit_names_the_code_if_nothing_but_the_settings_differs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("elder/a.py", "presets/tiny.yaml", "params.yaml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    first = release._commit()
    assert re.fullmatch("[0-9a-f]{40}", first)
    (tmp_path / "presets" / "default.yaml").write_text("of the preset in force")
    (tmp_path / "params.yaml").write_text("of the preset")
    assert release._commit() == first
    (tmp_path / "presets" / "tiny.yaml").write_text("edited")
    with pytest.raises(UserError, match="the code differs from the last commit"):
        release._commit()


def test_a_preset_is_recognized_until_it_is_edited(tmp_path):
    (tmp_path / "presets").mkdir()
    for file in ("params.yaml", "presets/tiny.yaml"):
        (tmp_path / file).write_text((ROOT / file).read_text())
    assert preset.in_force(tmp_path) == "default"
    preset.apply("tiny", tmp_path)
    assert preset.in_force(tmp_path) == "tiny"
    changed = params.raw(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text(str(changed))
    assert preset.in_force(tmp_path) is None


@pytest.mark.slow
def test_a_wheel_reconstructs_with_a_released_model(shelf, shipped, tmp_path):
    """Built from a copy of the package, and imported from the wheel alone."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "elder", source / "elder", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shipped, source / "elder" / "released" / "denoise-small")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = Path(tmp_path).glob("elder-*.whl")
    np.save(tmp_path / "y.npy", np.random.default_rng(0).random((24, 32)).astype(np.float32))
    command = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'there')!r}); from elder.cli import main; sys.exit(main())"
    )
    shutil.unpack_archive(wheel, tmp_path / "there", "zip")
    arguments = ["reconstruct", "released:denoise-small", "--measurement", "y.npy", "--out", "x.png"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").exists()
