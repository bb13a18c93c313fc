"""What `make run` made, as a table, and what to try next."""

from __future__ import annotations

import sys
from pathlib import Path

from elder import files
from elder.errors import UserError
from elder.problems import PROBLEMS

NAMES = {
    "total_variation": "total variation (tuned)",
    "pretrained": "pre-trained (tuned)",
    "finetuned": "DEQ fine-tuned",
}


def table(metrics: dict[str, dict[str, float]], problem: str) -> list[str]:
    """The rows of one cell's table."""
    names = {"initial": PROBLEMS[problem].initial_name, **NAMES}
    lines = [f"  {'':<26}{'PSNR':>9}{'SSIM':>9}{'steps':>8}"]
    for key, row in metrics.items():
        lines.append(f"  {names[key]:<26}{row['psnr']:>6.2f} dB{row['ssim']:>9.4f}{row['steps']:>8.1f}")
    return lines


def main() -> None:
    """Print the table of every cell."""
    found = sorted(Path("reports").glob("*/registered.json"))
    if not found:
        raise UserError("reports: no result yet; run dvc repro")
    for registered in found:
        folder, verdict = registered.parent, files.read_json(registered)
        print(f"\n{folder.name}, means over the test images")
        print("\n".join(table(files.read_json(folder / "metrics.json"), verdict["name"].removeprefix("elder-"))))
        alias = "champion" if verdict["promoted"] else "challenger"
        print(f"  {verdict['name']} version {verdict['version']} is {alias}: {verdict['reason']}")
        print(f"  pictures: {folder}/panel.png, {folder}/convergence.png; model: models/{folder.name}")
    name = files.read_json(found[0])["name"]
    print(
        f"""
Next:
  source .venv/bin/activate
  elder evaluate models:/{name}@champion --images YOUR_PICTURES --out report    on pictures of yours
  dvc repro, after a change in params.yaml                            only what the change affects runs anew
  mlflow ui --backend-store-uri sqlite:///mlflow.db                  curves, runs and the registry in a browser
  python -m pipeline.serve --cron "0 3 * * *"                        retrain every night"""
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"summary: {error}")
