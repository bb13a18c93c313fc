"""Reconstruct a folder of measurements with one model.

  python -m pipeline.batch models:/elder-csmri@champion --measurements DIR --out OUT

As `elder reconstruct` does it with each file, in one process: the model is taken from the registry once. A measurement
that can't be reconstructed is told, and the others go on; the exit code is then 1. OUT/batch.json has one entry for
each measurement: {"measurement", "picture", "told", "done", "made_from"}. A batch that is ended by SIGTERM lists what
was done; one that is killed, what was done up to ten seconds before. With --resume, a picture that is there is left as
it is if the same model made it from the same file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from elder import cli, command
from elder.errors import UserError
from elder.io import check_apart, file_names, read_json, write_json
from elder.io.arrays import ARRAYS
from elder.model.address import folder as bundle_folder
from pipeline.tracking.fingerprints import content_hash

MEASUREMENTS = tuple(ARRAYS)
PICTURES = (".png", ".tif", ".npy")
# Seconds between two listings: each writes all of batch.json.
PAUSE = 10.0


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


def finished(listing: Path) -> dict[str, dict[str, Any]]:
    """What an earlier batch has done, by the names of the measurements, where its picture is still there.

    Raises `UserError` if the file is no listing of a batch.
    """
    if not listing.exists():
        return {}
    try:
        rows = read_json(listing)
        return {row["measurement"]: row for row in rows if row["done"] and (listing.parent / row["picture"]).is_file()}
    except (KeyError, TypeError):
        raise UserError(f"{listing}: is no listing of a batch; move it away, or leave --resume out") from None


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Reconstruct the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a bundle folder, released:NAME or a registry URI")
    parser.add_argument("--measurements", type=Path, required=True, metavar="DIR", help="of " + " ".join(MEASUREMENTS))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pictures go")
    parser.add_argument("--suffix", choices=PICTURES, default=".png", help="of the pictures, .png by default")
    parser.add_argument(
        "--resume", action="store_true", help="leave what an earlier batch has made from the same as it is"
    )
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
        earlier = finished(listing) if arguments.resume else {}
        listing.unlink(missing_ok=True)
        before = signal.signal(signal.SIGTERM, _end)  # so that what is done is listed
        model, rows, listed = bundle_folder(arguments.model), [], time.monotonic()
        weights, left = content_hash(model), 0

        def note() -> None:
            """List what is done, now or by an earlier batch."""
            write_json(listing, rows + [earlier[path.name] for path in found[len(rows) :] if path.name in earlier])

        try:
            for path, name in zip(
                tqdm(found, desc="reconstruct", mininterval=1.0), file_names(found, folder), strict=True
            ):
                picture, made_from = out / f"{name}{arguments.suffix}", f"{weights} {content_hash(path)}"
                row = earlier.get(path.name, {})
                if (row.get("picture"), row.get("made_from")) == (picture.name, made_from):
                    rows.append(row)
                    left += 1
                    continue
                rows.append(reconstruct(str(model), path, picture, arguments.own_code) | {"made_from": made_from})
                print(f"{path.name}: {rows[-1]['told']}", flush=True)
                if time.monotonic() > listed + PAUSE:
                    note()
                    listed = time.monotonic()
        finally:
            note()
            signal.signal(signal.SIGTERM, before)
        done = sum(row["done"] for row in rows)
        print(f"{done} of {len(rows)} measurements reconstructed, in {out}{f', {left} of them before' if left else ''}")
        if done < len(rows):
            raise UserError(f"{len(rows) - done} of {len(rows)} measurements failed; {listing} says why")

    sys.exit(command.run("batch", work))


if __name__ == "__main__":
    main()
