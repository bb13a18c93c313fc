"""Near-duplicates are found as a comparison of all pairs finds them, and all of them are named."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import stage
from PIL import Image

from elder import UserError, io
from pipeline.pictures.duplicates import Picture, near_pairs, refuse_duplicates
from stages.parallel import in_parallel


def by_comparison(hashes, groups, radius) -> list[list[int]]:
    """What `near_pairs` has to find."""
    pairs = itertools.combinations(range(len(hashes)), 2)
    near = lambda i, j: (int(hashes[i]) ^ int(hashes[j])).bit_count() <= radius  # noqa: E731
    return [[i, j] for i, j in pairs if groups[i] != groups[j] and near(i, j)]


@pytest.mark.parametrize("radius", [0, 1, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 90, 700])
def test_the_pairs_are_those_of_a_comparison_of_all(count, radius):
    rng = np.random.default_rng(count + radius)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for copy in range(0, count - 1, 3):  # neighbors at every distance up to two beyond the radius
        flips = rng.choice(64, rng.integers(0, radius + 3), replace=False)
        hashes[copy + 1] = hashes[copy] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    groups = rng.integers(0, 3, count)
    found = near_pairs(hashes, groups, radius)
    assert found.tolist() == by_comparison(hashes, groups, radius)
    assert count < 90 or len(found) > count / 40


def test_many_of_one_look():
    """Slices of one scan: long runs of hashes that hardly differ."""
    rng = np.random.default_rng(0)
    hashes = np.uint64(2**40 + 12345) ^ (np.uint64(1) << rng.integers(0, 64, 300).astype(np.uint64))
    groups = np.arange(300) // 140
    assert near_pairs(hashes, groups, 4).tolist() == by_comparison(hashes, groups, 4)
    assert near_pairs(hashes, np.zeros(300, dtype=np.int64), 4).shape == (0, 2)


def test_all_duplicates_are_named_at_once():
    pictures = [
        Picture("cat", "train", "s1", 0xFF00),
        Picture("dog", "train", "s2", 2**63),
        Picture("hen", "validation", "s3", 2**63 + 1),
        Picture("pig", "validation", "s4", 0xFFFF0000),
        Picture("puss", "test", "s1", 0xFF00),
        Picture("hound", "test", "s5", 2**63 + 0b1110),
        Picture("black", "train", "s6", None),
        Picture("night", "test", "s6", None),
    ]
    with pytest.raises(UserError) as told:
        refuse_duplicates(pictures)
    assert str(told.value) == (
        "cat (train) and puss (test) are one picture; dog (train) and hen (validation), dog (train) and hound (test), "
        "hen (validation) and hound (test) look the same: remove one of each pair, put both into one split by a list "
        "in prepare.split, or into one group by prepare.group"
    )
    refuse_duplicates([picture for picture in pictures if picture.split == "train"])


def test_the_order_of_results_is_that_of_the_items():
    begun = []

    def square(n: int) -> int:
        begun.append(n)
        return n * n

    results = in_parallel(square, range(40), "squares", workers=3)
    assert next(results) == 0
    assert len(begun) <= 8  # memory does not depend on the number of items
    assert list(results) == [n * n for n in range(1, 40)]


def test_an_error_ends_the_work():
    def fails(n: int) -> int:
        if n == 5:
            raise UserError("five")
        return n

    with pytest.raises(UserError, match="five"):
        list(in_parallel(fails, range(1000), "numbers", workers=2))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    for index in range(9):
        picture = Image.fromarray((rng.random((9, 12)) * 255).astype(np.uint8)).resize(
            (60, 45), Image.Resampling.BICUBIC
        )
        folder = tmp_path / "in" / ("train", "validation", "test")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{index}.png")
    return tmp_path / "in"


def settings(source: Path) -> dict:
    return {"prepare": {"source": "folder", "folder": str(source), "split": "folders", "train_scales": [0.5, 1.0]}}


def test_what_is_prepared_does_not_depend_on_the_number_of_workers(source, monkeypatch, tmp_path):
    made = {}
    for workers in (1, 4):
        monkeypatch.setattr("torch.get_num_threads", lambda workers=workers: workers)
        out = tmp_path / f"prepared{workers}"
        assert stage(monkeypatch, tmp_path, settings(source), "prepare", "--out", str(out)) == 0
        made[workers] = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(made[1]) == 13
    assert made[1] == made[4]


def test_all_is_checked_before_anything_is_written(source, monkeypatch, tmp_path, capfd):
    (source / "test" / "broken.png").write_bytes(b"no picture")
    written = []
    monkeypatch.setattr(io, "write_image", lambda path, image: written.append(path))
    assert stage(monkeypatch, tmp_path, settings(source), "prepare", "--out", str(tmp_path / "prepared")) == 1
    assert "broken.png: corrupt" in capfd.readouterr().err
    assert written == []
