"""The main job on the sample data: cut chips, train, predict, write layers, maps and a report. `make demo` runs it."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # each function imports what it needs: torch takes seconds, the first line and Ctrl-C come before
    from geo_mvmf import terminal
    from geo_mvmf.evaluation import Evaluation
    from geo_mvmf.model.bundle import Bundle
    from geo_mvmf.predictions import Predictions
    from geo_mvmf.progress import Progress

Result = TypeVar("Result")
INTERRUPTED = 130  # as the command line ends after Ctrl-C
HERE = Path(__file__).resolve().parent


def main(out: Path) -> None:
    """Run the main job and say where everything is."""
    begun = time.monotonic()
    say(begun, "cutting 6000 chips and training on them: about 2 minutes on 2 idle cores; a second run reuses both")
    from geo_mvmf import evaluation

    bundle = train(out)
    say(begun, f"trained {out / 'run' / 'bundle.safetensors'}")
    found = predict(bundle, out)
    say(begun, f"predicted {int(found.is_predicted.sum())} of {len(found)} images")
    found.write(out / "predictions.gpkg", levels=(0.5, 0.9), overwrite=True)
    drawn = [draw(found, row, out) for row in pick(found)]
    result = evaluation.evaluate(found)
    write_report(found, result, drawn, out)
    say(begun, "wrote layers, maps and the report")
    print(result.table().query("group == 'all'").to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"chance within 2500 km: {float(result.chance(2500.0)):.3f}")
    for name in ("report.html", "predictions.gpkg", "predictions.nc", "album_density.tif", "run/bundle.safetensors"):
        print(f"  {out / name}")
    print("Open predictions.gpkg and the .tif files in QGIS: they are styled. Open report.html in a browser.")


def train(out: Path) -> Bundle:
    """Cut 6000 chips from the relief map and train as sample_data/train.toml says; a second run reuses both."""
    from geo_mvmf.inputs import chips
    from geo_mvmf.model import training

    table = out / "training" / "chips.csv"
    if not table.exists():
        area = HERE / "countries.geojson"
        job = chips.cut_chips(
            HERE / "relief.tif", table.parent, count=6000, size=48, ground_km=2000.0, area=area, seed=1, overwrite=True
        )
        show(job)
    shown = bar()
    try:
        return training.train(HERE / "train.toml", report=shown)
    finally:
        shown.close()


def predict(bundle: Bundle, out: Path) -> Predictions:
    """Predict the held-out chips, whose table also brings their truth and one corrupt file."""
    from geo_mvmf import predicting
    from geo_mvmf.inputs import tables

    table = tables.read_image_table(HERE / "truth.csv")
    return show(predicting.predict_job(bundle, table, out=out / "predictions.nc", overwrite=True))


def pick(found: Predictions) -> list[int]:
    """The most certain image, a typical one and the least certain one."""
    import numpy as np

    order = np.argsort(found.rows["area_90_km2"].to_numpy(float))[: int(found.is_predicted.sum())]
    return [int(order[0]), int(order[order.size // 2]), int(order[-1])]


def draw(found: Predictions, row: int, out: Path) -> tuple[str, bytes]:
    """One image's density as GeoTIFF and as a picture."""
    from geo_mvmf import pictures
    from geo_mvmf.maps.grid import Grid

    known = found.rows.loc[row]
    stem = Path(str(known["filename"])).stem.split(",")[0].encode("ascii", "replace").decode().replace("?", "_")
    raster = found.write_density(out / f"density_{stem}.tif", Grid.globe(0.5), known["image_id"], overwrite=True)
    picture = pictures.density_picture(
        raster[0],
        title=f"{known['filename']}: 90 % within {known['area_90_km2'] / 1e6:.2g} million km²",
        estimate=(known["longitude"], known["latitude"]),
        truth=(known["true_longitude"], known["true_latitude"]),
    )
    (out / f"density_{stem}.png").write_bytes(picture)
    return f"Density of {known['filename']}; its error is {known['error_km']:.0f} km", picture


def write_report(found: Predictions, result: Evaluation, drawn: list[tuple[str, bytes]], out: Path) -> None:
    """The album's density, the map of all points, and the page that shows everything."""
    from geo_mvmf import album_report, pictures
    from geo_mvmf.maps.grid import Grid

    found.write_density(out / "album_density.tif", Grid.globe(0.5), combine="mean", overwrite=True)
    points = pictures.points_picture(found.to_geodataframe(), title="Predicted places, lines to the true ones")
    (out / "predictions.png").write_bytes(points)
    album_report.write_album_report(
        out / "report.html",
        found,
        evaluation=result,
        title="geo_mvmf on its sample: a relief map of the world",
        introduction=[
            "A small network learnt from chips, 2000 km wide, of a relief map, and says where other chips of it lie.",
            "It knows this map and nothing about photos.",
        ],
        pictures=drawn,
        overwrite=True,
    )


def bar() -> terminal.Reporter:
    """A bar on a terminal, nothing elsewhere."""
    from geo_mvmf import terminal

    return terminal.Reporter("bar" if sys.stderr.isatty() else "none")


def show(job: Generator[Progress, None, Result]) -> Result:
    """Run a job with a bar."""
    return bar().run(job)


def say(begun: float, text: str) -> None:
    """Say what was done and when."""
    print(f"[{time.monotonic() - begun:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output").resolve())
    except KeyboardInterrupt:  # jobs were closed on the way, and with them whatever they had started
        print("interrupted; given again, the demo uses the chips and the model that were finished", file=sys.stderr)
        sys.exit(INTERRUPTED)
