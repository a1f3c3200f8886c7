"""The command that adds evidence to predictions, without torch: fuse."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from geo_mvmf.commands import options
from geo_mvmf.terminal import Reporter

if TYPE_CHECKING:
    import pandas as pd

LITTLE = 0.01
"""Probability in an area below which a warning is due."""


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Predictions file, .nc, one row per place.")
@click.option(
    "--by",
    default="all",
    show_default=True,
    help="Column whose equal values are one place; image_id: every image for itself; all: all are of one place.",
)
@click.option(
    "--area", type=click.Path(path_type=Path), help="Only there: polygons in any CRS, or a raster mask (.tif)."
)
@click.option("--layer", help="Of an area that is a GeoPackage with several. Default: the only one of polygons.")
@click.option("--prior", type=click.Path(path_type=Path), help="Raster of a density per area, in any CRS.")
@click.option(
    "--prior-mode",
    type=click.Choice(["replace", "multiply"]),
    default="replace",
    show_default=True,
    help="Whether it takes the place of the training prior, or multiplies it.",
)
@click.option("--image-id", "image_ids", multiple=True, help="Only these images. Repeatable. Default: all.")
@click.option(
    "--independence",
    type=click.FloatRange(0.0, 1.0),
    default=1.0,
    show_default=True,
    help="Of the images, 0..1; 0: copies, worth one image.",
)
@click.option(
    "--max-mass-error",
    type=click.FloatRange(1e-4, 0.1),
    default=0.005,
    show_default=True,
    help="Of any region's probability; a half costs 4 times.",
)
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def fuse(
    report: Reporter,
    *,
    predictions: Path,
    out: Path,
    by: str,
    area: Path | None,
    layer: str | None,
    prior: Path | None,
    prior_mode: str,
    image_ids: tuple[str, ...],
    independence: float,
    max_mass_error: float,
    overwrite: bool,
) -> None:
    """Fuse images known to be of one place; restrict them to an area; give them another prior.

    The training prior is counted once, however many images there are. The result is a predictions file: density,
    regions and evaluate take it as they take any other.
    """
    from geo_mvmf import fusing
    from geo_mvmf.image_choice import open_some

    options.check_suffix(out, (".nc",))
    options.check_new(out, overwrite=overwrite)
    wanted = fusing.Options(by, area, prior, prior_mode, independence, max_mass_error, layer)
    chosen = open_some(predictions, image_ids)
    evidence = "".join(f", {what} {path}" for what, path in (("area", area), ("prior", prior)) if path is not None)
    report.say(f"{options.images(len(chosen))}, by {by}{evidence}")
    store = report.run(fusing.fuse_job(chosen.store, out, wanted, overwrite=overwrite))
    report.wrote("predictions", out)
    report.failed(options.failures(store.rows))
    _warn_of_little(store.rows, area)
    good = store.rows[store.rows["status"] == "ok"]
    report.result(
        f"status: {options.counts(store.rows['status'])}\n"
        f"information: {good['information_bits'].median():.1f} bits, {good['gained_bits'].median():+.1f} against the"
        f" most informative image; 90 % region: {good['area_90_km2'].median():.4g} km2,"
        f" {good['saved_area_90_km2'].median():.4g} km2 saved (medians of {len(good)})\n"
        f"wrote {out}",
        counts=options.row_counts(store.rows),
    )


def _warn_of_little(rows: pd.DataFrame, area: Path | None) -> None:
    """Say how many images hardly speak for the area that they are restricted to."""
    held = rows["probability_in_area"].to_numpy(float)
    little, known = int((held < LITTLE).sum()), int((held >= 0.0).sum())
    if little:
        warnings.warn(
            f"{little} of {known} images have less than {LITTLE:.0%} of their probability in {area} (column "
            "probability_in_area): what is left of them there says that they are hardly from there",
            stacklevel=2,
        )
