"""Which picture trains and which one tests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import stage
from PIL import Image

from elder import UserError, io
from pipeline.pictures import splits

SHARES = {"validation": 0.2, "test": 0.2}


def test_a_picture_keeps_its_split_as_others_come_and_go():
    names = [f"{index}.png" for index in range(300)]
    before = splits.at_random(names, names, SHARES, seed=0)
    after = splits.at_random([*names[50:], "new.png"], [*names[50:], "new.png"], SHARES, seed=0)
    assert all(after[name] == before[name] for name in names[50:])
    counts = Counter(before.values())
    assert 40 <= counts["validation"] <= 80
    assert 40 <= counts["test"] <= 80
    assert splits.at_random(names, names, SHARES, seed=1) != before


@pytest.mark.parametrize("count", [3, 4, 7])
@pytest.mark.parametrize("seed", range(5))
def test_no_split_is_empty(count, seed):
    names = [str(index) for index in range(count)]
    assert set(splits.at_random(names, names, SHARES, seed).values()) == set(splits.SPLITS)


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        ("", ["p1/a.png", "p1/b.png", "p2/a.png"]),
        ("folder", ["p1", "p1", "p2"]),
        ("p[0-9]", ["p1", "p1", "p2"]),
        ("/(.)", ["a", "b", "a"]),
    ],
)
def test_groups(rule, groups):
    assert splits.groups_of(["p1/a.png", "p1/b.png", "p2/a.png"], rule) == groups


def test_a_group_is_in_one_split():
    names = [f"patient{n // 10}/slice{n % 10}.png" for n in range(100)]
    groups = splits.groups_of(names, "folder")
    chosen = splits.at_random(names, groups, SHARES, seed=0)
    assert all(len({chosen[n] for n, g in zip(names, groups, strict=True) if g == group}) == 1 for group in groups)
    with pytest.raises(UserError, match="the group patient3 is in test and train: put it into one split"):
        splits.refuse_torn({**chosen, "patient3/slice0.png": "test", "patient3/slice1.png": "train"}, names, groups)


@pytest.mark.parametrize(
    "content",
    ["name,split\na.png,train\n", "\ufeffname, split\r\n a.png , train\r\n\r\n", 'split,name\ntrain,"a.png"\n'],
)
def test_a_list_with_blanks_and_marks_is_read(content, tmp_path):
    path = tmp_path / "split.csv"
    path.write_text(content, newline="")
    assert splits.by_list(path) == {"a.png": "train"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,split\na.png,train\n", "lacks the column name"),
        ("", "lacks the column name"),
        ("name,split\na.png\n", "row 2 has 1 columns"),
        ("name,split\na.png,train\na.png,test\n", "a.png has two splits"),
    ],
)
def test_a_list_that_says_too_little_is_refused(content, message, tmp_path):
    (tmp_path / "split.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        splits.by_list(tmp_path / "split.csv")


def noise(path: Path, seed: int, slices: int = 1) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.pad(rng.random((slices, 16, 16)), ((1, 1), (0, 0), (0, 0))).repeat(2, 1).repeat(2, 2))
    else:
        Image.fromarray((rng.random((16, 16)) * 255).astype(np.uint8)).resize((32, 32), 0).save(path)


def prepared(monkeypatch, folder: Path, source: Path, **chosen) -> dict[str, list[str]]:
    """The names in each split after `prepare`."""
    out = folder / "prepared"
    change = {"prepare": {"source": "folder", "folder": str(source), "train_scales": [1.0], **chosen}}
    assert stage(monkeypatch, folder, change, "prepare", "--out", str(out)) == 0
    found = {split: sorted(path.stem for path in (out / split).iterdir()) for split in splits.SPLITS}
    listed = io.read_json(out / "manifest.json")["images"]
    assert sorted((row["split"], row["name"]) for row in listed) == sorted((s, n) for s in found for n in found[s])
    return found


def test_patients_with_slices_of_the_same_names(monkeypatch, tmp_path):
    for patient in range(8):
        for index in range(3):
            noise(tmp_path / "in" / f"p{patient}" / f"{index}.png", 10 * patient + index)
    found = prepared(monkeypatch, tmp_path, tmp_path / "in", group="folder")
    patients = {split: {name.split("__")[0] for name in names} for split, names in found.items()}
    assert sum(map(len, found.values())) == 24
    assert sum(map(len, patients.values())) == 8


def test_two_files_of_one_name_give_two_pictures(monkeypatch, tmp_path):
    for index, name in enumerate(("a.png", "a.tif", "b/c.png", "b__c.png", "v.npy", "v-0.png")):
        noise(tmp_path / "in" / name, index, slices=2)
    found = prepared(monkeypatch, tmp_path, tmp_path / "in")
    assert sum(map(len, found.values())) == 7  # five pictures and two slices


def test_empty_slices_are_left_out_and_are_no_duplicates(monkeypatch, tmp_path):
    for index in range(4):
        noise(tmp_path / "in" / f"{index}.npy", index, slices=3)
    assert sum(map(len, prepared(monkeypatch, tmp_path, tmp_path / "in").values())) == 12
    assert sum(map(len, prepared(monkeypatch, tmp_path, tmp_path / "in", drop_empty=False).values())) == 20


def test_a_list_of_files_that_are_not_there_is_told(monkeypatch, tmp_path, capfd):
    for index, name in enumerate("abc"):
        noise(tmp_path / "in" / f"{name}.png", index)
    rows = [f"{name}.png,{split}\n" for name, split in zip("abcd", (*splits.SPLITS, "test"), strict=True)]
    (tmp_path / "split.csv").write_text("name,split\n" + "".join(rows))
    prepared(monkeypatch, tmp_path, tmp_path / "in", split=str(tmp_path / "split.csv"))
    assert "lists 1 files that are not below" in capfd.readouterr().err


def test_nothing_is_left_of_what_is_refused(monkeypatch, tmp_path, capfd):
    for split in splits.SPLITS:
        noise(tmp_path / "in" / split / "a.png", 7)
    change = {"prepare": {"source": "folder", "folder": str(tmp_path / "in"), "split": "folders"}}
    assert stage(monkeypatch, tmp_path, change, "prepare", "--out", str(tmp_path / "out" / "prepared")) == 1
    assert "are one picture" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_any_name(project):
    """DVC watches it, and no shell sees its name."""
    source = project.folder / "my 'pictures' $HOME ~ \"x\""
    for index in range(4):
        noise(source / f"{index}.png", index)
    project.change("prepare", source="folder", folder=source.name)
    project.run("dvc", "repro", "prepare")
    assert len(io.read_json(project.folder / "data" / "prepared" / "manifest.json")["images"]) >= 4
    assert "didn't change" in project.run("dvc", "repro", "prepare").stdout


def test_a_patient_in_two_split_folders_is_refused(monkeypatch, tmp_path, capfd):
    for index, name in enumerate(("train/p1/a.png", "validation/p2/a.png", "test/p1/a.png")):
        noise(tmp_path / "in" / name, index)
    settings = {"source": "folder", "folder": str(tmp_path / "in"), "split": "folders"}
    change = {"prepare": settings | {"group": "folder"}}
    assert stage(monkeypatch, tmp_path, change, "prepare", "--out", str(tmp_path / "prepared")) == 1
    assert "the group p1 is in test and train" in capfd.readouterr().err
    # Without groups, files of the same name in two splits are two pictures.
    assert stage(monkeypatch, tmp_path, {"prepare": settings}, "prepare", "--out", str(tmp_path / "prepared")) == 0
