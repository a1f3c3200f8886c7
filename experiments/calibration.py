"""Are probabilities true in blocks that were never trained on? The Blue Marble model, before and after calibration.

``python experiments/calibration.py --run FOLDER``, the working folder of ``experiments/blue_marble.py``; some minutes
on two cores. The test blocks are split in halves: one calibrates, the other is evaluated, and beside it the blocks with
a buffer and the new places between the training chips. Prints a table; docs/evaluation.md shows and reads it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import blue_marble
import numpy as np
import pandas as pd

import geo_mvmf
from geo_mvmf.inputs import tables
from geo_mvmf.model.bundle import Bundle

SEASONS = ("02", "08")  # two months that were not trained on
FEW = 200  # of the thousand new places
SHOWN = ("nll_nats", "coverage_of_0.5_region", "coverage_of_0.9_region", "mean_error_km", "mean_expected_error_km")


def main() -> None:
    """Calibrate on one half of the blocks, judge on the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="working folder of experiments/blue_marble.py")
    folder = parser.parse_args().run
    before = geo_mvmf.load_bundle(folder / "run" / "bundle.safetensors")
    table = read_chips(folder / "test" / "chips.csv")
    after = geo_mvmf.calibrate(before, rows(table, "half that calibrates"), group_by="big_block")
    for key, value in after.metadata["training"]["calibration"].items():
        print(f"{key}: {value}")
    judged = rows(table, "other half", blue_marble.BUFFERED, blue_marble.NEW)
    parts = [judge(bundle, judged).assign(when=when) for when, bundle in (("before", before), ("after", after))]
    print(pd.concat(parts).to_string(index=False, float_format=lambda value: f"{value:.3g}"))


def read_chips(path: Path) -> pd.DataFrame:
    """Test chips of two unseen months, with the part that each is of and the block of 10 by 15 degrees it lies in."""
    table = tables.read_image_table(path)
    longitude, latitude = (table[name].to_numpy(float) for name in ("longitude", "latitude"))
    part = blue_marble.group_of(longitude, latitude).astype(object)
    block = np.floor(latitude / 10.0) * 100.0 + np.floor(longitude / 15.0)
    tested = part == blue_marble.BLOCK
    first = np.isin(block, np.unique(block[tested])[::2])
    part[tested] = np.where(first[tested], "half that calibrates", "other half")
    part[np.flatnonzero(part == blue_marble.NEW)[FEW * len(SEASONS) * 4 :]] = ""
    table["part"], table["big_block"] = part, block.astype(int)
    return table[table["season"].astype(str).str.zfill(2).isin(SEASONS)]


def rows(table: pd.DataFrame, *parts: str) -> pd.DataFrame:
    """Rows of some parts, numbered anew."""
    return table[table["part"].isin(parts)].reset_index(drop=True)


def judge(bundle: Bundle, table: pd.DataFrame) -> pd.DataFrame:
    """Figures of each part, with intervals over blocks."""
    result = geo_mvmf.evaluate(geo_mvmf.predict(bundle, table), by="part", cluster_by="big_block")
    figures = result.table()
    return figures[figures["measure"].isin(SHOWN) & (figures["group"] != "all")].drop(columns=["estimator"])


if __name__ == "__main__":
    main()
