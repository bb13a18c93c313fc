"""Reconstruct a folder of measurements with one model.

  python -m pipeline.batch models:/elder-csmri@champion --measurements DIR --out OUT

As `elder reconstruct` does it with each file, in one process: the model is taken from the registry once. A measurement
that can't be reconstructed is told, and the others go on; the exit code is then 1. OUT/batch.json has one entry for
each measurement: {"measurement", "picture", "told", "done"}. A batch that is ended by SIGTERM lists what was done.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from elder import cli, errors
from elder.errors import UserError
from elder.io import check_apart, file_names, write_json
from elder.io.arrays import ARRAYS
from elder.model.address import folder as bundle_folder

MEASUREMENTS = tuple(ARRAYS)
PICTURES = (".png", ".tif", ".npy")


def reconstruct(model: str, measurement: Path, picture: Path, own_code: str | None) -> dict[str, Any]:
    """One measurement, as `elder reconstruct` does it; what it told."""
    # A name may begin with a dash.
    command = ["reconstruct", model, f"--measurement={measurement}", f"--out={picture}"]
    command += ["--own-code", own_code] if own_code else []
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = cli.main(command)
    lines = [line.removeprefix("elder: ").removeprefix(f"{picture}: ") for line in told.getvalue().splitlines()]
    return {
        "measurement": measurement.name,
        "picture": picture.name if code == 0 else None,
        "told": "; ".join(lines),
        "done": code == 0,
    }


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Reconstruct the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a bundle folder, released:NAME or a registry URI")
    parser.add_argument("--measurements", type=Path, required=True, metavar="DIR", help="of " + " ".join(MEASUREMENTS))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pictures go")
    parser.add_argument("--suffix", choices=PICTURES, default=".png", help="of the pictures, .png by default")
    parser.add_argument("--own-code", metavar="MODULE.CLASS", help="the class of the problem if it is one of your own")
    arguments = parser.parse_args()

    def work() -> None:
        folder, out = arguments.measurements, arguments.out
        if not folder.is_dir():
            raise UserError(f"--measurements {folder}: is no folder")
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in MEASUREMENTS)
        if not found:
            raise UserError(f"--measurements {folder}: holds no measurement ({' '.join(MEASUREMENTS)})")
        check_apart(folder, out)
        out.mkdir(parents=True, exist_ok=True)
        listing = out / "batch.json"
        listing.unlink(missing_ok=True)  # of an earlier batch
        before = signal.signal(signal.SIGTERM, _end)  # so that what is done is listed
        model, rows = str(bundle_folder(arguments.model)), []
        try:
            for path, name in zip(
                tqdm(found, desc="reconstruct", mininterval=1.0), file_names(found, folder), strict=True
            ):
                rows.append(reconstruct(model, path, out / f"{name}{arguments.suffix}", arguments.own_code))
                print(f"{path.name}: {rows[-1]['told']}", flush=True)
        finally:
            write_json(listing, rows)
            signal.signal(signal.SIGTERM, before)
        done = sum(row["done"] for row in rows)
        print(f"{done} of {len(rows)} measurements reconstructed, in {out}")
        if done < len(rows):
            raise UserError(f"{len(rows) - done} of {len(rows)} measurements failed; {listing} says why")

    sys.exit(errors.run("batch", work))


if __name__ == "__main__":
    main()
