"""Commands that make models: features, train, calibrate."""

from __future__ import annotations

import math
import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geo_mvmf.commands import options
from geo_mvmf.errors import UsageError
from geo_mvmf.terminal import Reporter

if TYPE_CHECKING:
    from geo_mvmf.model.configuration import TrainingConfig

LEAST_SHIFT = -2.0
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.2, 5.0
"""Beyond them a calibration is extreme, and a warning is due."""


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--backbone", default="wide_resnet50_2", show_default=True, help="A torchvision.models name.")
@click.option("--weights", help="A torchvision weight name (downloaded) or a local .safetensors file.")
@click.option("--cache", required=True, type=click.Path(path_type=Path), help="Folder of the feature cache.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the images; relative paths begin there.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images at once: fewer, less memory."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that read images.")
@click.pass_obj
def features(
    report: Reporter,
    *,
    source: Path,
    backbone: str,
    weights: str | None,
    cache: Path,
    root: Path | None,
    batch_size: int,
    device: str,
    workers: int,
) -> None:
    """Compute the features of a table of images once and keep them on disk."""
    from geo_mvmf.inputs import table_rows, tables
    from geo_mvmf.model import backbones
    from geo_mvmf.model import features as module
    from geo_mvmf.model.devices import choose_device

    frame = tables.read_image_table(source, root=root)
    options.check_images(source, len(frame))
    table_rows.warn_if_swapped(frame)
    network = backbones.build_backbone(backbone, weights=weights)
    job = module.cache_features(
        network,
        frame,
        cache,
        spec=network.image_spec,
        batch_size=batch_size,
        device=choose_device(device),
        workers=workers,
    )
    found = report.run(job)
    good, total = int((found.index >= 0).sum()), len(found.index)
    report.failed(options.failures(frame.assign(status=found.status, message=found.message)))
    report.wrote("folder", cache)
    report.result(f"{good} of {total} images have features, in {cache}", counts={"ok": good, "failed": total - good})


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Begin anew although the run folder holds a run.")
@click.pass_obj
def train(report: Reporter, *, config: Path, overwrite: bool) -> None:
    """Train as a TOML file says; after a crash the same command goes on from the last checkpoint."""
    from geo_mvmf.model import ranks, release, run_folder, training
    from geo_mvmf.model.configuration import read_config

    if not ranks.is_first():  # of the processes of torchrun: one of them speaks
        report = Reporter("none", tell=lambda _: None)
    settings = read_config(config)
    before = _made_at(release.released_path(settings))
    found = report.run(training.train_job(settings, overwrite=overwrite, where=str(config)))
    report.wrote("bundle", found)
    end = run_folder.end_record(found.parent)
    if before is not None and _made_at(found) == before:  # the run was finished, and no file came in its place
        report.result(_complete(config, settings, found, end))
        return
    run = shlex.quote(str(found.parent))
    report.say(f"what the run is worth, where it fails, what to do next: geo-mvmf report {run} --out report.html")
    early = ""
    if "stopped_early" in end:
        early = (
            f"; stopped early after {end['stopped_early']} steps: no lower validation NLL in {settings.patience} "
            f"validations since step {end.get('step')}"
        )
    report.result(f"wrote {found}{early}")


def _complete(config: Path, settings: TrainingConfig, found: Path, end: dict[str, Any]) -> str:
    """Say of a run that was finished how long it was, and how to train further, longer or anew."""
    steps, epochs = end.get("steps", settings.steps), end.get("epochs")
    if epochs is None and settings.steps is None:  # of a version that did not tell: what it was asked for
        epochs = settings.num_epochs
    counted = ((steps, "step"), (epochs, "epoch"))
    length = ", ".join(f"{number:.12g} {what}{'s' * (number != 1)}" for number, what in counted if number is not None)
    if "stopped_early" in end:
        length += f", stopped early after {end['stopped_early']} steps"
    longer = "epochs" if settings.steps is None else "steps"
    further = f'stage = "finetune" with init_bundle = "{found}"'
    if settings.stage == "backbone":
        further = f'stage = "head" with weights = "{found}"'
    return (
        f"{found}: this run was complete already ({length}); nothing was trained\n"
        f"to train on from it: another TOML file, {further}\n"
        f"to train longer: raise {longer} in {config}, and name another out there or add --overwrite\n"
        "to begin anew as it is: add --overwrite"
    )


def _made_at(path: Path) -> tuple[int, int] | None:
    """What differs between a file and the one that takes its place; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New bundle (.safetensors).")
@click.option("--group-by", help="Column of images that belong together. Default: by place, see --block-level.")
@click.option("--block-level", type=click.IntRange(0, 12), default=4, show_default=True, help="Of the S2 cells.")
@click.option("--exif", is_flag=True, help="Take positions from EXIF.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the images; relative paths begin there.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images at once: fewer, less memory."
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that read images.")
@click.option("--half", is_flag=True, help="Store weights as float16.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def calibrate(
    report: Reporter,
    *,
    bundle: Path,
    source: Path,
    out: Path,
    group_by: str | None,
    block_level: int,
    exif: bool,
    root: Path | None,
    device: str,
    batch_size: int,
    workers: int,
    half: bool,
    overwrite: bool,
) -> None:
    """Make a bundle's probabilities true, by images of known place (SOURCE) that it was never trained on.

    One temperature and one shift of all concentrations are fitted and folded into the new bundle.
    """
    options.check_suffix(out, (".safetensors",))
    options.check_new(out, overwrite=overwrite)

    from geo_mvmf.inputs import tables
    from geo_mvmf.model import calibration
    from geo_mvmf.model.bundle import load_bundle, save_bundle

    if source.suffix.lower() == ".safetensors" and bundle.suffix.lower() != ".safetensors":
        raise UsageError(f"{source}: a bundle stands in the place of the images; the bundle comes first, then {bundle}")
    frame = tables.read_image_table(source, exif=exif, root=root)
    options.check_images(source, len(frame))
    report.stage("load")
    job = calibration.calibrate_job(
        load_bundle(bundle, device),
        frame,
        group_by=group_by,
        block_level=block_level,
        batch_size=batch_size,
        workers=workers,
    )
    found = report.run(job)
    save_bundle(found, out, half=half, overwrite=overwrite)
    about = found.metadata["training"]["calibration"]
    for warning in _extremes(about):
        warnings.warn(warning, stacklevel=1)
    report.wrote("bundle", out)
    counts = {"ok": about["num_images"], "failed": about["num_failed"], "groups": about["num_groups"]}
    report.result("\n".join([*_calibration_lines(about), f"wrote {out}"]), counts=counts)


def _calibration_lines(about: dict[str, Any]) -> list[str]:
    def with_interval(name: str) -> str:
        low, high = about[f"{name}_interval"]
        return f"{about[name]:.3f} ({low:.3f} to {high:.3f})"

    failed = f"; {about['num_failed']} could not be read" if about["num_failed"] else ""
    losses = f"{about['nll_before']:.3f} before, {about['nll_after']:.3f} after"
    low, high = about["nll_change_interval"]
    unsure = (
        "the interval of the change holds 0: these images do not show that the new bundle is better than the old one; "
        "more groups would tell"
    )
    return [
        f"{about['num_images']} images in {about['num_groups']} groups ({about['grouped_by']}){failed}",
        f"temperature of the logits: {with_interval('temperature')}",
        f"shift of the log concentrations: {with_interval('log_concentration_shift')}",
        f"negative log-likelihood of left-out groups: {losses}; change {with_interval('nll_change')} nats",
        *([unsure] if low <= 0.0 <= high else []),
    ]


def _extremes(about: dict[str, Any]) -> list[str]:
    """Say of a fit that is far from changing nothing what it means, and what to do."""
    temperature, shift = about["temperature"], about["log_concentration_shift"]
    found = []
    if shift < LEAST_SHIFT:
        found.append(
            f"the shift of the log concentrations is {shift:.2f}: peaks become {math.exp(-shift / 2.0):.1f} times as "
            "wide, so the bundle hardly knows these images"
        )
    if not LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE:
        is_flat = temperature > MOST_TEMPERATURE
        means = "hardly anything is left of its choice among places" if is_flat else "its weights become far sharper"
        found.append(f"the temperature of the logits is {temperature:.2f}: {means}")
    advice = "check that their places are right and that they are like the images to predict, or train on such images"
    return [f"{each}; {advice}" for each in found]
