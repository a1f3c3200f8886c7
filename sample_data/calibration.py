"""Calibrate the sample model on new chips and show what that does on others; writes docs/evaluation.png.

``python sample_data/calibration.py demo_output``; half a minute. docs/evaluation.md shows the result.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

import geo_mvmf
from geo_mvmf import evaluation, pictures, progress
from geo_mvmf.inputs import chips
from geo_mvmf.model.bundle import Bundle, save_bundle

HERE = Path(__file__).resolve().parent
MEASURES = ("nll_nats", "mean_searched_probability", "mean_error_km", "mean_expected_error_km")


def main(out: Path) -> None:
    """Cut two sets of chips, calibrate on the first, evaluate on the second."""
    before = geo_mvmf.load_bundle(HERE / "relief.safetensors", device="cpu")
    after = geo_mvmf.calibrate(before, cut(out / "calibration", seed=2))
    save_bundle(after, out / "calibrated.safetensors", half=True, overwrite=True)
    for key, value in after.metadata["training"]["calibration"].items():
        print(f"{key}: {value}")
    held_out = cut(out / "held_out", seed=3)
    results = {name: judge(bundle, held_out) for name, bundle in (("before", before), ("after", after))}
    for name, result in results.items():
        table = result.table().set_index("measure")
        shown = table.loc[[each for each in table.index if each.startswith("coverage") or each in MEASURES]]
        print(f"\n{name}\n{shown[['value', 'low', 'high', 'n', 'n_nan']].round(3).to_string()}")
    side_by_side(results, HERE.parent / "docs" / "evaluation.png")


def cut(folder: Path, *, seed: int) -> pd.DataFrame:
    """Cut 500 chips from the relief map, as those of the training are, at other places."""
    job = chips.cut_chips(
        HERE / "relief.tif",
        folder,
        count=500,
        size=48,
        ground_km=2000.0,
        area=HERE / "countries.geojson",
        seed=seed,
        overwrite=True,
    )
    progress.run(job)
    return geo_mvmf.read_image_table(folder / "chips.csv")


def judge(bundle: Bundle, table: pd.DataFrame) -> evaluation.Evaluation:
    """Predict and compare; chips of one S2 cell of level 4 belong together."""
    return geo_mvmf.evaluate(geo_mvmf.predict(bundle, table), block_level=4)


def side_by_side(results: dict[str, evaluation.Evaluation], path: Path) -> None:
    """Put the pictures of coverage beside each other."""
    drawn = [
        Image.open(io.BytesIO(pictures.coverage_picture(result, title=f"{name} calibration")))
        for name, result in results.items()
    ]
    sheet = Image.new("RGB", (sum(each.width for each in drawn) + 20, max(each.height for each in drawn)), "white")
    left = 0
    for each in drawn:
        sheet.paste(each, (left, 0))
        left += each.width + 20
    sheet.quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output").resolve())
