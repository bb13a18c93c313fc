"""The command `elder`: simulate measurements, reconstruct, evaluate, and list models."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elder import command
from elder.errors import DataWarning, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from elder.io import Scaling
    from elder.model.model import Model

EPILOG = {
    "simulate": """examples:
  elder simulate csmri --images photos --out measurements --set ratio=0.3 --set mask=cartesian
  elder simulate csmri --images brains --out measurements --set mask=mask_20.mat --set noise=0.01
  elder simulate superres --images photos --color --out measurements --set scale=3 --set kernel=kernels.mat:2
  elder simulate ct --images scans --scaling=-160,240 --out measurements

Writes OUT/NAME.npz for every picture: y, the measurement, and what the operator needs besides (mask for csmri).""",
    "reconstruct": """examples:
  elder reconstruct released:denoise-red --measurement measurements/camera.npz --out camera.png
  elder reconstruct models/csmri-least_squares --measurement measurements/camera.npz --out camera.png
  elder reconstruct models:/elder-csmri@champion --measurement y.npy --set mask=mask.png --out x.tif

MODEL is released:NAME, a model that comes with elder; a bundle folder (config.json, weights.safetensors); or a URI of
the MLflow model registry. `elder models` lists the first and the last.
The measurement is .npy .npz .png .tif .mat or .h5; arrays beside y in it are arguments of the operator. Models expect
pictures in [0, 1]: give the value of white of other units by --data-range.""",
    "evaluate": """examples:
  elder evaluate released:denoise-red --images photos --out report --set noise=0.12
  elder evaluate models/csmri-least_squares --images photos --out report --limit 8
  elder evaluate models:/elder-csmri@champion --images brains --set mask=mask_20.mat --out report

Simulates a measurement of every picture, reconstructs it, and writes OUT/metrics.json and the pictures.""",
    "models": """examples:
  elder models
  elder models --card denoise-red
  MLFLOW_TRACKING_URI=http://127.0.0.1:5000 elder models""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 1: an error, in one line on stderr; 2: wrong usage."""
    arguments = _parser().parse_args(argv)
    return command.run("elder", lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elder", description="Learned explicit regularizers for imaging inverse problems: y = A x + e."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=EPILOG[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    def settings(sub: argparse.ArgumentParser) -> None:
        text = (
            "a setting of the problem, may be repeated: noise, seed, and its own (csmri: ratio, mask, centered; ct: "
            "angles, arc, detectors, offset; deblur: kernel; inpaint: missing, mask; superres: scale, kernel)"
        )
        sub.add_argument("--set", action="append", default=[], type=setting, metavar="KEY=VALUE", help=text)

    def clean(sub: argparse.ArgumentParser) -> None:
        text = "clean pictures, searched recursively: png jpg tif bmp webp jp2 npy npz mat h5 nii dcm"
        sub.add_argument("--images", type=Path, required=True, metavar="DIR", help=text)
        text = "how values are scaled to [0, 1]: range (default), max, percentile, or a window: --scaling=LOW,HIGH"
        sub.add_argument("--scaling", type=_scaling, default="range", metavar="HOW", help=text)
        text = "order of the axes of arrays whose shape leaves it open: hw hwc chw nhw hwn nhwc nchw"
        sub.add_argument("--axes", default="", help=text)

    def own_code(sub: argparse.ArgumentParser) -> None:
        text = "the class of the model's problem if it is one of your own: its module is executed, so it must be named"
        sub.add_argument("--own-code", metavar="MODULE.CLASS", help=text)

    sub = command("simulate", _simulate, "make measurements from clean pictures")
    sub.add_argument(
        "problem",
        metavar="PROBLEM",
        help="csmri, ct, deblur, denoise, inpaint or superres; or one of your own, with --set class=MODULE.CLASS",
    )
    clean(sub)
    sub.add_argument("--color", action="store_true", help="keep the colors; without it, measure the luminance")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the measurements go")
    settings(sub)

    sub = command("reconstruct", _reconstruct, "recover a picture from a measurement")
    sub.add_argument("model", metavar="MODEL", help="released:NAME, a bundle folder or a registry URI")
    sub.add_argument("--measurement", type=Path, required=True, metavar="FILE", help="the measurement y")
    sub.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the picture: .png, 8 bits; .tif or .npy, as it is"
    )
    text = "the value of white in the picture behind the measurement, 1 by default; or auto, from the initial guess"
    sub.add_argument("--data-range", type=_data_range, metavar="VALUE", help=text)
    settings(sub)
    own_code(sub)

    sub = command("evaluate", _evaluate, "measure a model's quality on clean pictures")
    sub.add_argument("model", metavar="MODEL", help="released:NAME, a bundle folder or a registry URI")
    clean(sub)
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where metrics.json and pictures go; those of an earlier evaluation there are removed",
    )
    sub.add_argument("--limit", type=int, metavar="N", help="the first N pictures only")
    settings(sub)
    own_code(sub)

    sub = command("models", _models, "list the models that come with elder, and those in the registry")
    sub.add_argument("--card", metavar="NAME", help="print the card of one that comes with elder: data, terms, recipe")
    return parser


def setting(text: str) -> tuple[str, str]:
    """KEY=VALUE of a command line as a pair. Raises `argparse.ArgumentTypeError` for other text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _scaling(text: str) -> Scaling:
    from elder import io

    try:
        scaling = [float(value) for value in text.split(",")] if "," in text else text
        io.check_scaling(scaling)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return scaling


def _data_range(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def _find_own_code(path: str | None) -> None:
    """Let a class of the user's own be found where they work, as `python -m` would find it; only if there is one."""
    if path is not None:
        sys.path.append(str(Path.cwd()))


def _simulate(arguments: argparse.Namespace) -> None:
    from elder import problems
    from elder.problems import samples

    chosen = dict(arguments.set)
    _find_own_code(chosen.get("class"))
    problem = problems.make(arguments.problem, chosen)
    names, images = _clean(arguments, 3 if arguments.color else 1)
    _check_sizes(problem.check_size, names, images)
    _spare_files(dict(arguments.set), [arguments.out / f"{name}.npz" for name in names])
    for m in samples.measurements(problem, names, images):
        samples.save(arguments.out / f"{m.name}.npz", problem, m)
        print(f"{m.name}: {problem.name} measurement {tuple(m.y.shape[1:])}")
    print(f"{len(names)} measurements in {arguments.out}")


def _reconstruct(arguments: argparse.Namespace) -> None:
    import numpy as np

    from elder import io
    from elder.model.address import folder, load
    from elder.solvers import Status

    chosen = dict(arguments.set)
    _find_own_code(arguments.own_code)
    place = folder(arguments.model)
    model = load(place, chosen, arguments.own_code)
    if arguments.out.suffix.lower() not in (".png", ".tif", ".tiff", ".npy"):
        raise UserError(
            f"{arguments.out}: can't write {arguments.out.suffix or 'without a suffix'}; use .png .tif .npy"
        )
    io.check_apart(arguments.measurement, arguments.out)
    io.check_apart(place, arguments.out)
    _spare_files(chosen, [arguments.out])
    # With a value of white of the user's own, a picture is in the units of its file.
    arrays = _measurement(arguments.measurement, as_stored=isinstance(arguments.data_range, float))
    # What the user says by hand goes before what the measurement holds.
    by_hand = model.problem.said_by(chosen.keys())
    given = _known(model, arrays, arguments.measurement)
    given = {name: value for name, value in given.items() if name not in by_hand}
    for name in sorted(chosen.keys() & set(model.problem.drawing)):
        if not model.problem.said_by([name]):
            text = f"--set {name}={chosen[name]} has no effect: the operator of a measurement that exists is not drawn"
            warnings.warn(text, DataWarning, stacklevel=2)
    white = 1.0 if arguments.data_range is None else arguments.data_range
    x, info = model.reconstruct(arrays["y"], data_range=white, **given)
    status = Status(info.status)
    # No fixed point, and a picture that explains the measurement worse than a black one, whose misfit is 1.
    if status is Status.NOT_FINITE or not (status.succeeded or np.max(info.misfit) <= 1):
        raise UserError(
            f"{arguments.measurement}: diverged after {info.steps} steps, so nothing is written; {status.advice}"
        )
    if arguments.out.suffix.lower() == ".png":  # which shows [0, 1]; the others keep the units of y
        x = x / info.data_range
    io.write_image(arguments.out, x if x.ndim == 2 else x[0] if len(x) == 1 else x.transpose(1, 2, 0))
    print(f"{arguments.out}: {info.status} after {info.steps} steps, {info.seconds:.1f} s, misfit {info.misfit:.2g}")
    if not status.succeeded:
        warnings.warn(f"{arguments.out}: {status.advice}", DataWarning, stacklevel=2)


def _known(model: Model, arrays: dict[str, Any], path: Path) -> dict[str, Any]:
    """The arguments of the operator among the arrays of a measurement file. Warns of others, which are ignored."""
    known = set(model.problem.operator_arguments)
    if ignored := arrays.keys() - {"y"} - known:
        warnings.warn(
            f"{path}: {', '.join(sorted(ignored))} is no argument of the operator of {model.problem.name}, and ignored",
            DataWarning,
            stacklevel=2,
        )
    return {name: value for name, value in arrays.items() if name in known}


def _measurement(path: Path, as_stored: bool) -> dict[str, Any]:
    """y, (h, w) or (c, h, w), and the operator's arguments; see `io.read_measured` for y of a picture file."""
    from elder import io
    from elder.problems.samples import read_arrays

    if path.suffix.lower() in io.PICTURES:
        picture = io.read_measured(path, as_stored=as_stored)
        return {"y": picture if picture.ndim == 2 else picture.transpose(2, 0, 1)}
    arrays = read_arrays(path)
    if arrays["y"].ndim > 3:
        raise UserError(f"{path}: y has {arrays['y'].ndim} axes; give one measurement a file, (h, w) or (c, h, w)")
    return arrays


def _evaluate(arguments: argparse.Namespace) -> None:
    from elder import io
    from elder.evaluation import quality
    from elder.evaluation.evaluate import evaluate, summary
    from elder.evaluation.results import Result
    from elder.io import to_array
    from elder.model.address import folder, load
    from elder.problems.samples import measurements

    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit {arguments.limit}: must be at least 1")
    _find_own_code(arguments.own_code)
    place = folder(arguments.model)
    model = load(place, dict(arguments.set), arguments.own_code)
    io.check_apart(place, arguments.out)
    names, images = _clean(arguments, model.channels, arguments.limit)
    for check in (model.problem.check_size, quality.check_size):
        _check_sizes(check, names, images)
    earlier = _earlier_pictures(arguments.out)
    _spare_files(dict(arguments.set), [*earlier, *(arguments.out / f"{name}.png" for name in names)])
    _clear(arguments.out, earlier, names)

    def show(result: Result) -> None:
        io.write_image(arguments.out / f"{result.sample.name}.png", to_array(result.x[0]))
        row = result.row
        print(
            f"{row['name']}: {row['psnr_initial']:.2f} -> {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}, "
            f"{row['status']} after {row['steps']} steps, {row['seconds']:.1f} s",
            flush=True,
        )

    metrics = []
    for result in evaluate(model, measurements(model.problem, names, images)):
        show(result)
        metrics.append(result.metrics)
    report = summary(model, metrics)
    io.write_json(arguments.out / "metrics.json", report)
    mean, baseline = report["mean"], report["baseline"]
    print(f"mean of {len(names)}: {baseline['psnr']:.2f} -> {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}")


def _earlier_pictures(out: Path) -> list[Path]:
    """The pictures that an earlier `evaluate` wrote into a folder, by its metrics.json."""
    from elder import io

    try:
        report = io.read_json(out / "metrics.json")
        if not {"problem", "settings", "mean", "baseline"} <= report.keys():
            return []
        pictures = [out / f"{image['name']}.png" for image in report["images"]]
        return [path for path in pictures if path.is_file() and path.resolve().parent == out.resolve()]
    except (UserError, AttributeError, KeyError, TypeError, ValueError):  # there is none, or it is of something else
        return []


def _clear(out: Path, earlier: Sequence[Path], names: Sequence[str]) -> None:
    """Remove what an earlier evaluation wrote: it would stand beside the pictures of this one, those of the names.

    Warns of other pictures that are there.
    """
    for path in earlier:
        path.unlink()
    (out / "metrics.json").unlink(missing_ok=True)
    others = {path.name for path in out.glob("*.png")} - {f"{name}.png" for name in names}
    if others:
        count = f"{len(others)} pictures" if len(others) > 1 else "a picture"
        message = f"{out}: holds {count} of no image that is evaluated now, {min(others)} for one"
        warnings.warn(message, DataWarning, stacklevel=2)


def _models(arguments: argparse.Namespace) -> None:
    from elder import released

    if arguments.card is not None:
        print((released.folder(arguments.card) / "card.md").read_text(), end="")
        return
    for row in released.listing():
        how = ", by one step" if row["converged"] is None else ""
        print(
            f"released:{row['name']}: {row['about']}\n"
            f"  {row['problem']}, {row['regularizer'].replace('_', ' ')}, {row['parameters']} parameters in "
            f"{row['precision']}, {row['bytes'] / 2**20:.2f} MB; {row['psnr']:.2f} dB on {row['pictures']} validation "
            f"pictures{how}\n  data: {row['data']}\n  terms of the data: {row['terms']}"
        )
    _list_registry()


def _list_registry() -> None:
    from elder.model import registry, store

    if not registry.available():
        print("models of a registry are listed where MLflow is installed: pip install mlflow")
        return
    if store.address() is None:
        print(
            f"there is no registry here: a project that has trained has one in its folder, {store.VARIABLE} names one"
        )
        return
    rows = registry.listing()
    if not rows:
        print("the registry holds no elder model yet")
        return
    print(f"{'name':<24} {'version':>7} {'alias':<22} {'PSNR':>6}  when")
    for row in rows:
        print(f"{row['name']:<24} {row['version']:>7} {row['alias']:<22} {row['psnr']:6.2f}  {row['when']}")


def _clean(arguments: argparse.Namespace, channels: int, limit: int | None = None) -> tuple[list[str], list[Tensor]]:
    """Names, unique below the folder, and pictures as tensors; every slice of a volume that shows something.

    Raises `UserError` if what goes to `--out` would replace pictures, or be taken for some the next time.
    """
    from elder import io

    io.check_apart(arguments.images, arguments.out)
    paths = io.list_sources(arguments.images)
    io.check_axes(arguments.axes, paths)
    linked = {path for path in paths if path.is_symlink()}
    for place in sorted({path.parent for path in paths} | linked):  # a link may lead to another folder
        io.check_apart(place, arguments.out)
    given, names, pictures = io.Names(), [], []
    for path, name in zip(paths, io.file_names(paths, arguments.images), strict=True):
        for number, image in io.read_numbered(path, scaling=arguments.scaling, axes=arguments.axes, drop_empty=True):
            names.append(given.claim(io.numbered_name(name, number)))
            pictures.append(io.to_tensor(io.with_channels(image, channels)))
        if limit is not None and len(names) >= limit:
            break
    return names[:limit], pictures[:limit]


def _check_sizes(check: Callable[[tuple[int, int]], None], names: Sequence[str], images: Sequence[Tensor]) -> None:
    """Raise what `check` raises for the size of a picture, with its name, before anything is computed or written."""
    seen: set[tuple[int, int]] = set()
    for name, image in zip(names, images, strict=True):
        size = (image.shape[-2], image.shape[-1])
        if size in seen:
            continue
        seen.add(size)
        try:
            check(size)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


def _spare_files(settings: Mapping[str, str], written: Sequence[Path]) -> None:
    """Raise `UserError` if a file that a setting names, such as a mask, is one of those that are written."""
    from elder import io

    for value in settings.values():
        named = Path(value) if Path(value).is_file() else Path(value.rpartition(":")[0])  # of a kernel, FILE:INDEX
        if named.is_file():
            for path in written:
                io.check_apart(named, path)
