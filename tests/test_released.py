"""Models that come with the package: found by name, loaded, started from, and made with a card."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT

import elder
from elder import UserError, regularizers, released
from elder.model import bundle
from elder.training.initial import initialize
from pipeline import release

DESCRIPTION = {"name": "least_squares", "network": {"name": "dncnn", "channels": 1, "width": 6, "depth": 3}}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(released, "FOLDER", tmp_path / "released")
    return tmp_path / "released"


@pytest.fixture
def trained(tmp_path):
    """A regularizer as `pretrain` writes it."""
    torch.manual_seed(3)
    config = {"regularizer": DESCRIPTION, "metadata": {"denoising_psnr": {"0.1": 27.5}}}
    bundle.write(tmp_path / "trained", regularizers.make(**DESCRIPTION), config)
    return tmp_path / "trained"


@pytest.fixture
def shipped(shelf, trained, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(release, "_commit", lambda: "0123abc")
    release.release(trained, "denoise-small", "Removes noise.", "six photographs", "public domain")
    return shelf / "denoise-small"


def test_a_released_model_is_in_half_precision_with_a_card(shipped, trained):
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (shipped, trained)]
    assert sizes[0] < 0.7 * sizes[1]
    card = (shipped / "card.md").read_text()
    for text in ("released:denoise-small", "six photographs", "public domain", "0123abc", "27.5", "learning_rate"):
        assert text in card


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


def test_training_starts_from_a_denoiser_of_the_same_architecture(shipped, trained):
    torch.manual_seed(8)
    regularizer = regularizers.make(**DESCRIPTION)
    before = [p.clone() for p in regularizer.parameters()]
    assert initialize(regularizer, DESCRIPTION, "none") is None
    assert all(torch.equal(a, b) for a, b in zip(before, regularizer.parameters(), strict=True))
    assert initialize(regularizer, DESCRIPTION, "released") == "denoise-small"
    expected = elder.load("released:denoise-small").regularizer.parameters()
    assert all(torch.equal(a, b) for a, b in zip(expected, regularizer.parameters(), strict=True))


def test_training_keeps_its_weights_if_no_denoiser_fits(shipped):
    other = {**DESCRIPTION, "network": {**DESCRIPTION["network"], "width": 7}}
    assert initialize(regularizers.make(**other), other, "released") is None


@pytest.mark.parametrize("name", ["../outside", "", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(name, shelf, trained):
    with pytest.raises(UserError, match="is no name of a released model"):
        release.release(trained, name, "", "", "")


def test_weights_that_are_too_large_are_not_released(shelf, trained, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(release, "_commit", lambda: "0123abc")
    monkeypatch.setattr(release, "LARGEST", 100)
    with pytest.raises(UserError, match="MB of weights"):
        release.release(trained, "large", "", "", "")
    assert released.names() == []
