"""The command that predicts by methods which need no training of their own: baselines."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import click

from geo_mvmf.commands import options
from geo_mvmf.errors import BadInputError
from geo_mvmf.terminal import Reporter


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Model whose features are compared.")
@click.option("--training", required=True, type=click.Path(path_type=Path), help="Images of known place to look among.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder: neighbours.nc, training.nc.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="How many neighbours.")
@click.option(
    "--weighting",
    type=click.Choice(["distance", "equal"]),
    default="distance",
    show_default=True,
    help="Of the neighbours: by the distance of their features, or each the same.",
)
@click.option("--exif", is_flag=True, help="Take the training images' positions from EXIF.")
@click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of the images of SOURCE; relative paths begin there."
)
@click.option("--training-root", type=click.Path(path_type=Path), help="The same for --training.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that read images.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def baselines(
    report: Reporter,
    *,
    source: Path,
    bundle: Path,
    training: Path,
    out: Path,
    k: int,
    weighting: str,
    exif: bool,
    root: Path | None,
    training_root: Path | None,
    device: str,
    workers: int,
    overwrite: bool,
) -> None:
    """Predict by what a trained head must beat: nearest neighbours, and the density of the training images.

    Features are those of the bundle's backbone; those that were computed stay in the folder. The neighbours' places are
    widened to a density whose width the training images choose. `geo-mvmf compare` puts the two files beside others'.
    """
    files = [out / "neighbours.nc", out / "training.nc"]
    options.check_new(*files, overwrite=overwrite)

    import numpy as np

    from geo_mvmf.baselines import TrainingDensity
    from geo_mvmf.inputs import table_rows, tables
    from geo_mvmf.method_predictions import Method, write_method_predictions
    from geo_mvmf.model import features as module
    from geo_mvmf.model.bundle import load_bundle
    from geo_mvmf.model.heads import NearestNeighbours
    from geo_mvmf.model.neighbour_density import NeighbourDensity, fit_kernel

    report.stage("load")
    frame = tables.read_image_table(source, root=root)
    known = tables.read_image_table(training, exif=exif, root=training_root)
    options.check_images(source, len(frame))
    options.check_images(training, len(known))
    table_rows.require_not_swapped(known)
    for each in (frame, known):
        table_rows.warn_if_swapped(each)
    model = load_bundle(bundle, device)
    caches = [
        report.run(
            module.cache_features(
                model.backbone, table, out / "features", spec=model.spec, device=model.device, workers=workers
            )
        )
        for table in (known, frame)
    ]
    place = known[["longitude", "latitude"]].to_numpy(float)
    usable = np.flatnonzero((caches[0].index >= 0) & np.isfinite(place).all(axis=1))
    if usable.size <= k:
        raise BadInputError(
            f"{training}: {usable.size} of {len(known)} images can be read and have a place; more than k {k} needed"
        )
    search = NearestNeighbours(caches[0].rows(usable), *place[usable].T, k=k, weighting=weighting, device=model.device)
    kernel = fit_kernel(search)
    table = frame.assign(status=caches[1].status, message=caches[1].message)
    good = np.flatnonzero(caches[1].index >= 0)
    _warn_of_shared(
        source, training, frame["path"].iloc[good[np.isin(caches[1].index[good], caches[0].index[usable])]], len(frame)
    )
    unseen = np.zeros((len(frame), search.features.shape[1]), np.float32)
    unseen[good] = caches[1].rows(good)
    area = model.training_area
    methods: list[Method] = [NeighbourDensity(search, kernel), TrainingDensity(area.cell_ids, area.counts)]
    run = {"bundle": bundle.name, "training": str(training), "k": k, "weighting": weighting}
    for path, method in zip(files, methods, strict=True):
        write_method_predictions(path, method, unseen, table, run=run, overwrite=overwrite)
        report.wrote(path.stem, path)
    report.failed(options.failures(table))
    report.result(
        f"{good.size} of {len(frame)} images located among {usable.size} training images; kernels of log concentration "
        f"{kernel.log_concentration:.2f} and {100.0 * kernel.uniform_share:.2g} % everywhere\n"
        f"wrote {', '.join(map(str, files))}",
        counts={"ok": int(good.size), "failed": len(frame) - int(good.size)},
    )


def _warn_of_shared(source: Path, training: Path, paths: Iterable[object], of: int) -> None:
    """An image that is among those to look among finds itself, and its place is no prediction."""
    shared = list(paths)
    if shared:
        warnings.warn(
            f"{len(shared)} of {of} images of {source}, like {shared[0]}, are training images, too ({training}), by "
            "their content: each finds itself, and the neighbours look better than they are; keep them in one table",
            stacklevel=2,
        )
