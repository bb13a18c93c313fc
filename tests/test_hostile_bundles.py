"""Bundles that were made to harm: each ends in one line, executes nothing, and takes little memory."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import elder
from elder import UserError, cli, regularizers
from elder.problems.samples import measure

# Loads every folder of `bundles` in one process, which may take 1 GB of addresses beyond those of the imports. Prints
# what came of each, and how much memory was in use at most, in bytes.
LOADER = """
import json, re, resource, sys, time
from pathlib import Path
import elder
load = elder.load
before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + 10**9, before + 10**9))
outcomes = {}
for folder in sorted(path for path in Path("bundles").iterdir() if path.is_dir()):
    start = time.perf_counter()
    try:
        load(folder)
        outcomes[folder.name] = ("loaded", "", 0)
    except BaseException as error:
        outcomes[folder.name] = (type(error).__name__, str(error), time.perf_counter() - start)
# Of this program alone: ru_maxrss would count the process that started it.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"outcomes": outcomes, "peak": peak, "modules": list(sys.modules)}))
"""
EVIL = "from pathlib import Path\nPath({marker!r}).touch()\nfrom elder.problems import Denoise as Evil\n"
NETWORK = "regularizer", "network"
SETTINGS = "problem", "settings"

# One of each kind, over each network.
REGULARIZERS: dict[str, dict[str, Any]] = {
    **{name: {"name": name, "network": {"name": "dncnn", "width": 4}} for name in regularizers.OVER_A_NETWORK},
    **{name: {"name": name} for name in regularizers.OF_FILTERS},
    "drunet": {"name": "red", "network": {"name": "drunet", "widths": [3, 4, 3, 4], "activation": "softplus"}},
}

Harm = Callable[[Path], object]


def config(*names: str, **changes: Any) -> Harm:
    """Change entries of config.json in the section that the names lead to; `None` takes one away."""

    def harm(folder: Path) -> None:
        whole = json.loads((folder / "config.json").read_text())
        section = whole
        for name in names:
            section = section[name]
        for name, value in changes.items():
            section.pop(name, None)
            if value is not None:
                section[name] = value
        (folder / "config.json").write_text(json.dumps(whole))

    return harm


def text(content: str | bytes) -> Harm:
    """Replace config.json."""
    return lambda folder: (folder / "config.json").write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def swapped(old: str, new: str) -> Harm:
    """Replace a piece of the text of config.json, by what may be no JSON that Python writes."""

    def harm(folder: Path) -> None:
        before = (folder / "config.json").read_text()
        assert old in before
        (folder / "config.json").write_text(before.replace(old, new))

    return harm


def ridge(**settings: int) -> Harm:
    return config(regularizer={"name": "convex_ridge", "channels": 1, **settings})


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Harm:
    """Change the weights by name, and write them with the library of the format."""

    def harm(folder: Path) -> None:
        values = load_file(folder / "weights.safetensors")
        change(values)
        save_file(values, folder / "weights.safetensors")

    return harm


def filled(value: float, dtype: torch.dtype = torch.float32) -> Harm:
    """One of the weights has this value."""

    def change(values: dict[str, torch.Tensor]) -> None:
        values["network.convs.1.weight"] = values["network.convs.1.weight"].to(dtype)
        values["network.convs.1.weight"][0, 0, 0, 0] = value

    return tensors(change)


def retyped(dtype: torch.dtype) -> Harm:
    return tensors(lambda values: values.update({name: value.to(dtype) for name, value in values.items()}))


def header(change: Callable[[dict[str, Any]], object]) -> Harm:
    """Change the header of weights.safetensors, and leave the values."""

    def harm(folder: Path) -> None:
        content = (folder / "weights.safetensors").read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:end])
        change(entries)
        raw = json.dumps(entries).encode()
        (folder / "weights.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + content[end:])

    return harm


def weights(content: bytes) -> Harm:
    return lambda folder: (folder / "weights.safetensors").write_bytes(content)


def raw_header(content: bytes, length: int | None = None) -> Harm:
    return weights((len(content) if length is None else length).to_bytes(8, "little") + content)


def offsets(*values: int) -> Harm:
    return header(lambda entries: entries["network.convs.0.bias"].update(data_offsets=list(values)))


def largest(folder: Path) -> None:
    """The most weights that are read, in a file with holes that takes no place on the disk; the last is NaN."""
    network = {"name": "dncnn", "channels": 1, "width": 2700, "depth": 3}
    config("regularizer", network=network)(folder)
    with torch.device("meta"):
        made = regularizers.make("least_squares", network)
    entries, end = {}, 0
    for name, value in made.state_dict().items():
        entries[name] = {"dtype": "F64", "shape": list(value.shape), "data_offsets": [end, end + 8 * value.numel()]}
        end += 8 * value.numel()
    assert regularizers.LARGEST / 1.1 < end / 8 < regularizers.LARGEST
    raw_header(json.dumps(entries).encode())(folder)
    with (folder / "weights.safetensors").open("r+b") as file:
        file.seek(end - 8, os.SEEK_END)
        file.write(np.array(np.nan).tobytes())


def replaced(name: str, make: Callable[[Path], object]) -> Harm:
    """Something else takes the place of a file."""

    def harm(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return harm


def sparse(path: Path) -> None:
    """A file of 1 TB that takes no place on the disk."""
    path.touch()
    os.truncate(path, 2**40)


def bound(path: Path) -> None:
    """A socket."""
    here = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def mask(write: Callable[[Path], object]) -> Harm:
    """The mask of the problem is a file of the bundle."""

    def harm(folder: Path) -> None:
        config(files=["mask"])(folder)
        write(folder / "mask.npy")

    return harm


def npy(shape: tuple[int, ...], dtype: str = "|u1", size: int = 0) -> Callable[[Path], None]:
    """A file whose header gives a shape, with holes of `size` bytes for values."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
            file.truncate(file.tell() + size)

    return write


def kernel(write: Callable[[Path], object]) -> Harm:
    """The problem is deblurring, its kernel a file of the bundle."""

    def harm(folder: Path) -> None:
        config(problem={"name": "deblur", "settings": {"kernel": "kernel.npy"}}, files=["kernel"])(folder)
        write(folder / "kernel.npy")

    return harm


class Pickled:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def pickled(path: Path) -> None:
    np.save(path, np.array([Pickled()], dtype=object), allow_pickle=True)


# What is done to a sound bundle, and what the line says.
BUNDLES: dict[str, tuple[Harm, str]] = {
    # Code.
    "class in the working directory": (config(*SETTINGS, **{"class": "evil.Evil"}), "name it by own_code='evil.Evil'"),
    "class in a bundle": (config(*SETTINGS, **{"class": "bundles.evil.Evil"}), "--own-code bundles.evil.Evil"),
    "class of the library": (config(*SETTINGS, **{"class": "os.system"}), "own_code='os.system'"),
    "class with spaces": (config(*SETTINGS, **{"class": "evil; import evil"}), "must be the dotted path"),
    "class by a path": (config(*SETTINGS, **{"class": "../evil.Evil"}), "must be the dotted path"),
    "class of a long path": (config(*SETTINGS, **{"class": "evil." * 10**4 + "Evil"}), "must be the dotted path"),
    "class that is a list": (config(*SETTINGS, **{"class": ["evil.Evil"]}), "must be the dotted path"),
    "pickle for weights": (replaced("weights.safetensors", lambda p: torch.save(Pickled(), p)), "safetensors"),
    "pickle for a mask": (mask(pickled), "must hold real numbers"),
    # Sizes.
    "width": (config(*NETWORK, width=15_000), "width >= 1"),
    "depth": (config(*NETWORK, depth=100_000), "depth >= 2"),
    "width and depth": (config(*NETWORK, width=4096, depth=256), "parameters; at most"),
    "channels": (config(*NETWORK, channels=10**9), "channels"),
    "width of zero": (config(*NETWORK, width=0), "width >= 1"),
    "negative depth": (config(*NETWORK, depth=-3), "depth >= 2"),
    "widths": (config("regularizer", network={"name": "drunet", "widths": [10**9] * 4}), "widths"),
    "many widths": (config("regularizer", network={"name": "drunet", "widths": [1] * 10**5}), "four widths"),
    "blocks": (config("regularizer", network={"name": "drunet", "blocks": 10**6}), "blocks up to"),
    "filters": (ridge(filters=10**9), "filters up to"),
    "knees": (ridge(knees=10**9), "knees"),
    "filter size": (ridge(filter_size=10**6 + 1), "filter_size up to"),
    # Weights.
    "whole numbers": (retyped(torch.int64), "is I64; weights are one of"),
    "truth values": (retyped(torch.bool), "is BOOL; weights are one of"),
    "NaN": (filled(float("nan")), "its weights are not finite: network.convs.1.weight"),
    "infinity": (filled(float("inf")), "its weights are not finite"),
    "infinity in float32": (filled(1e300, torch.float64), "its weights are not finite"),
    "the largest, NaN at the end": (largest, "its weights are not finite"),
    "a tensor missing": (tensors(lambda values: values.pop("network.convs.1.bias")), "convs.1.bias is missing"),
    "a tensor more": (tensors(lambda values: values.update(more=torch.zeros(3))), "more is unknown to config.json"),
    "another shape": (config(*NETWORK, width=7), "but config.json describes [7, 2, 3, 3]"),
    "cut": (lambda d: os.truncate(d / "weights.safetensors", 900), "but the file holds"),
    "longer": (lambda d: os.truncate(d / "weights.safetensors", 2**40), "but the file holds"),
    "empty": (weights(b""), "not a safetensors file"),
    "header without an end": (raw_header(b"{}", 2**63), "at most 1048576 are read"),
    "header beyond the file": (raw_header(b"{", 1000), "not a safetensors file"),
    "header that is a list": (raw_header(b"[]"), "the header holds no object"),
    "nested header": (raw_header(b'{"a":' * 10**5), "nested deeper"),
    "name given twice": (raw_header(b'{"a": 1, "a": 2}'), "a is given twice"),
    "entries that are numbers": (header(lambda e: e.update(dict.fromkeys(e, 1))), "needs dtype, shape"),
    "offsets that are text": (header(lambda e: e["network.convs.0.bias"].update(data_offsets="ab")), "data_offsets"),
    "negative offsets": (offsets(-24, 0), "data_offsets of network.convs.0.bias"),
    "offsets of another length": (offsets(0, 2**40), "data_offsets of network.convs.0.bias"),
    "offsets beyond the file": (offsets(2**40, 2**40 + 24), "but the file holds"),
    "no weights": (lambda d: (d / "weights.safetensors").unlink(), "weights.safetensors: no such file"),
    "weights from a pipe": (replaced("weights.safetensors", os.mkfifo), "not a regular file"),
    "weights from a socket": (replaced("weights.safetensors", bound), "not a regular file"),
    "weights that are a folder": (replaced("weights.safetensors", Path.mkdir), "not a regular file"),
    "weights from a device": (replaced("weights.safetensors", lambda p: p.symlink_to("/dev/zero")), "not a regular"),
    "weights without an end": (replaced("weights.safetensors", sparse), "not a safetensors file"),
    # config.json as a file and as JSON.
    "config from a pipe": (replaced("config.json", os.mkfifo), "config.json: not a regular file"),
    "config from a device": (replaced("config.json", lambda p: p.symlink_to("/dev/zero")), "not a regular file"),
    "config that links to itself": (replaced("config.json", lambda p: p.symlink_to(p)), "config.json"),
    "config that is a folder": (replaced("config.json", Path.mkdir), "not a regular file"),
    "config without an end": (replaced("config.json", sparse), "longer than 1048576 bytes"),
    "config of bytes": (text(b"\xff\xfe{}"), "not valid JSON"),
    "config that is a list": (text("[1, 2]"), "holds no object"),
    "config that is a number": (text("7"), "holds no object"),
    "config nested": (text("[" * 10**5 + "]" * 10**5), "nested deeper than 32"),
    "config nested below a long name": (text('{"%s": {"a": [%s]}}' % ("n" * 5 * 10**5, "0," * 10**5 + "0")), "format"),  # noqa: UP031
    "config nested a little": (config("metadata", a=json.loads("[" * 50 + "]" * 50)), "nested deeper than 32"),
    "section given twice": (swapped('"format": 1', '"format": 1, "format": 1'), "format is given twice"),
    "number of many digits": (swapped('"seed": 0', f'"seed": {"9" * 10**4}'), "not valid JSON"),
    # Sections and settings.
    "another format": (config(format=2), "bundle format 2"),
    "format that is true": (config(format=True), "format=True must be of type int"),
    "unknown section": (config(code="import os"), "code is unknown"),
    "section of a long name": (config(**{"x" * 10**5: 1}), "xxx..."),
    "section of two lines": (config(**{"one\ntwo\x1b[31m": 1}), "one?two?[31m is unknown"),
    "no regularizer": (config(regularizer=None), "regularizer is missing"),
    "regularizer that is text": (config(regularizer="red"), "regularizer='red' must be of type dict"),
    "unknown regularizer": (config("regularizer", name="best"), "regularizer.name='best' must be one of"),
    "unknown network": (config(*NETWORK, name="transformer"), "regularizer.network.name='transformer'"),
    "network of a ridge": (config("regularizer", name="convex_ridge"), "regularizer.network is unknown"),
    "unknown setting of the network": (config(*NETWORK, device="cuda"), "regularizer.network.device is unknown"),
    "text for a number": (config(*NETWORK, width="6"), "regularizer.network.width='6' must be of type int"),
    "a fraction of a layer": (config(*NETWORK, depth=3.5), "regularizer.network.depth=3.5 must be of type int"),
    "truth value for a number": (config(*NETWORK, channels=True), "network.channels=True must be of type int"),
    "no problem": (config(problem=None), "problem is missing"),
    "no hyperparameters": (config(tuning=None), "tuning is missing"),
    "problem without a name": (config("problem", name=None), "problem.name is missing"),
    "problem with more": (config("problem", path="evil.py"), "problem.path is unknown"),
    "unknown problem": (config("problem", name="mri"), "unknown problem 'mri'"),
    "unknown setting": (config(*SETTINGS, angles=7), "problem.settings.angles is unknown"),
    "text for a setting": (config(*SETTINGS, ratio="0.4"), "problem.settings.ratio='0.4' must be of type float"),
    "setting out of range": (config(*SETTINGS, noise=-1), "noise=-1"),
    "seed beyond 64 bits": (config(*SETTINGS, seed=2**70), "problem.settings.seed is a number beyond 64 bits"),
    "many angles": (config(problem={"name": "ct", "settings": {"angles": 10**12}}), "angles=1000000000000"),
    "no λ": (config("tuning", weight=None), "tuning.weight is missing"),
    "unknown hyperparameter": (config("tuning", steps=3), "tuning.steps is unknown"),
    "NaN for λ": (swapped('"weight": 0.1', '"weight": NaN'), "tuning.weight is nan"),
    "infinite λ": (swapped('"weight": 0.1', '"weight": 1e999'), "tuning.weight is inf"),
    "negative λ": (config("tuning", weight=-0.1), "weight=-0.1 must be in"),
    "text for σ": (config("tuning", sigma="0.1"), "tuning.sigma='0.1' must be of type float"),
    "steps without an end": (config("tuning", max_steps=10**12), "max_steps=1000000000000 must be in"),
    "steps that are a fraction": (config("tuning", max_steps=10.5), "tuning.max_steps=10.5 must be of type int"),
    "tolerance of zero": (config("tuning", tol=0), "tol=0 must be in"),
    "tolerance that rounds to zero": (config("tuning", tol=1e-300), "tol=1e-300 must be in"),
    "metadata that are a list": (config(metadata=[]), "metadata=[] must be of type dict"),
    "NaN in metadata": (swapped('"metadata": {}', '"metadata": {"psnr": NaN}'), "metadata.psnr is nan"),
    # Files that settings name.
    "file outside": (config(files=["../../../etc/passwd"]), "is no setting of the problem"),
    "file of no setting": (config(files=["weights"]), "files: 'weights' is no setting of the problem"),
    "files that are numbers": (config(files=[1]), "files: 1 is no setting of the problem"),
    "mask elsewhere": (config(*SETTINGS, mask="/etc/passwd"), "mask='/etc/passwd' names a file that the bundle does"),
    "mask that is not there": (config(files=["mask"]), "mask.npy: no such file"),
    "mask from a pipe": (mask(os.mkfifo), "mask.npy: not a regular file"),
    "mask of text": (mask(lambda p: p.write_text("mask")), "corrupt or not a .npy file"),
    "mask in an archive": (mask(lambda p: np.savez(p.open("wb"), y=np.eye(3))), "corrupt or not a .npy file"),
    "mask larger than its file": (mask(npy((2**14, 2**14), size=9)), "is too large"),
    "mask shorter than it says": (mask(npy((64, 64), size=9)), "takes 4096 bytes, but the file holds 9"),
    "many kernels": (kernel(npy((2**26, 1, 1), size=2**26)), "is too large"),
    "large kernel": (kernel(npy((2**13, 2**13), size=2**26)), "more than 4194304 are no kernel"),
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(bundle, small_model, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The folder with all of them, and what came of loading each in one process; and sound ones."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (harm, _) in BUNDLES.items():
        shutil.copytree(bundle, folder / "bundles" / name)
        harm(folder / "bundles" / name)
    for name, described in REGULARIZERS.items():
        made = regularizers.make(**described)
        replace(small_model, regularizer=made, description=described).save(folder / "bundles" / f"sound {name}")
    shutil.copytree(bundle, folder / "linked")
    for name in ("config.json", "weights.safetensors"):
        (folder / "linked" / name).rename(folder / name)
        (folder / "linked" / name).symlink_to(folder / name)
    (folder / "linked").rename(folder / "bundles" / "linked")
    # The code lies where Python finds it. A folder of bundles in the working directory is a package to Python.
    for place in (folder, folder / "bundles"):
        (place / "evil.py").write_text(EVIL.format(marker=str(folder / "executed")))
    paths = [str(folder), str(Path(elder.__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADER]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_hostile_bundle_ends_in_one_line(name, loaded):
    _, found = loaded
    kind, message, _ = found["outcomes"][name]
    assert (kind, BUNDLES[name][1] in message) == ("UserError", True), (kind, message)
    assert message.isprintable()
    assert len(message) < 600
    assert f"bundles/{name}: " in message


def test_nothing_is_executed_and_memory_stays_below_1_gb(loaded):
    folder, found = loaded
    assert not [module for module in found["modules"] if "evil" in module]
    assert not (folder / "executed").exists()
    assert not (folder / "unpickled").exists()
    slowest = max(found["outcomes"].items(), key=lambda item: item[1][2])
    print(
        f"{len(BUNDLES)} hostile bundles, {found['peak'] / 1e6:.0f} MB at most; "
        f"the slowest, {slowest[0]}, took {slowest[1][2]:.1f} s"
    )
    assert found["peak"] < 1e9
    assert len(BUNDLES) >= 30


def test_sound_bundles_are_loaded_there_and_links_are_followed(loaded):
    """Without the symbolic tools of PyTorch, which take longer to import than all bundles to read."""
    _, found = loaded
    sound = {name: outcome for name, outcome in found["outcomes"].items() if name not in BUNDLES}
    assert len(sound) == len(REGULARIZERS) + 1
    assert {outcome[0] for outcome in sound.values()} == {"loaded"}, sound
    assert "sympy" not in found["modules"]


def test_code_is_executed_once_the_caller_names_it(bundle, tmp_path, monkeypatch):
    """Which shows that the others were not executed because nobody had named them."""
    marker = tmp_path / "executed"
    (tmp_path / "named_by_me.py").write_text(EVIL.format(marker=str(marker)))
    shutil.copytree(bundle, tmp_path / "bundle")
    own = {"name": "denoise", "settings": {"class": "named_by_me.Evil"}}
    config(problem=own)(tmp_path / "bundle")
    monkeypatch.syspath_prepend(tmp_path)
    for named in (None, "named_by_me", "named_by_me.Other", "elder.problems.Denoise"):
        with pytest.raises(UserError, match=r"own_code='named_by_me\.Evil'"):
            elder.load(tmp_path / "bundle", own_code=named)
        assert not marker.exists()
    assert elder.load(tmp_path / "bundle", own_code="named_by_me.Evil").problem.name == "denoise"
    assert marker.exists()


def test_the_command_asks_for_the_class_too(bundle, photographs, tmp_path, monkeypatch, capsys):
    """Code in the working directory is found by the command when it is named, and not before."""
    (tmp_path / "named_there.py").write_text(EVIL.format(marker=str(tmp_path / "executed")))
    shutil.copytree(bundle, tmp_path / "bundle")
    config(problem={"name": "denoise", "settings": {"class": "named_there.Evil"}})(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    command = ["evaluate", "bundle", "--images", str(photographs), "--out", "out", "--limit", "1"]
    assert cli.main(command) == 1
    assert "--own-code named_there.Evil on the command line" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    assert str(tmp_path) not in sys.path
    assert cli.main([*command, "--own-code", "named_there.Evil"]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_loading_draws_nothing_and_gives_the_weights(name, dtype, small_model, tmp_path):
    """Every regularizer, under every default dtype, bit by bit and with the layout in memory that it had."""
    made = regularizers.make(**REGULARIZERS[name])
    replace(small_model, regularizer=made, description=REGULARIZERS[name]).save(tmp_path)
    before = torch.get_rng_state()
    torch.set_default_dtype(dtype)
    try:
        model = elder.load(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    expected, found = made.state_dict(), model.regularizer.state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert (value.dtype, value.stride()) == (torch.float32, expected[key].stride())
        assert torch.equal(value, expected[key])
    assert not any(parameter.requires_grad for parameter in model.regularizer.parameters())


def test_a_double_default_gives_the_same_picture(bundle, rng):
    model = elder.load(bundle)
    sample = measure(model.problem, ["x"], [torch.rand((1, 1, 18, 21), generator=rng)])[0]
    y, mask = sample.y, sample.operator.mask
    expected, _ = model.reconstruct(y, mask=mask)
    torch.set_default_dtype(torch.float64)
    try:
        found, _ = elder.load(bundle).reconstruct(y, mask=mask)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)
