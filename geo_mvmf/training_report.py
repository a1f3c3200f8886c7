"""The report of a training run: one page that says what the model is worth, where it fails, and what to do next."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from geo_mvmf import (
    durable,
    report,
    resampling,
    training_pictures,
    training_sections,
    training_troubles,
    training_verdict,
)
from geo_mvmf.errors import BadInputError, TrainingError, UsageError
from geo_mvmf.map_axes import thousands
from geo_mvmf.model import country_results, held_out, moved_components, run_record
from geo_mvmf.model import learning_curve as curves
from geo_mvmf.model.bundle import Bundle, load_bundle
from geo_mvmf.model.devices import choose_device
from geo_mvmf.model.image_set import ImageSet, load_image_set
from geo_mvmf.model.run_record import RunRecord
from geo_mvmf.progress import Progress
from geo_mvmf.report import Section
from geo_mvmf.training_judgement import LEAST_IMAGES, Judgement, clusters_of, judge_job, too_few


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What a report looks at.

    Parameters
    ----------
    most_images : int
        Held-out images looked at.
    learning_curve : bool
        Whether heads are trained on shares of the training images.
    curve_steps : int
        Of each of these heads, at most.
    device : str
    workers : int
        Threads that read images.

    Raises
    ------
    UsageError
        A number is below 1.

    Examples
    --------
    >>> ReportOptions().most_images
    1000
    """

    most_images: int = held_out.MOST_IMAGES
    learning_curve: bool = False
    curve_steps: int = curves.STEPS
    device: str = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("most_images", "curve_steps", "workers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; 1 or more is needed")


class RunVerdict(NamedTuple):
    """What a run is worth.

    Attributes
    ----------
    verdict : tuple of str
        Sentences: how near, how useful, how true, on which images.
    troubles : tuple of str
        Signs of trouble; empty where there are none.
    images : int
        Held-out images that were judged.
    """

    verdict: tuple[str, ...]
    troubles: tuple[str, ...]
    images: int


def training_report_job(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: ReportOptions | None = None,
    *,
    overwrite: bool = False,
) -> Generator[Progress, None, RunVerdict]:
    """Write the report of a training run; closing the generator cancels it, and nothing is written.

    Parameters
    ----------
    run : path
        Run folder of `train`, finished or not.
    out : path
        Page to write, ends in .html.
    options : ReportOptions, optional
    overwrite : bool
        Whether an existing page may be replaced.

    Yields
    ------
    Progress
        Stages "read", "predict" or "features", "calibrate", "judge", with a learning curve "train", and "write".

    Returns
    -------
    RunVerdict
        As the page begins with it.

    Raises
    ------
    BadInputError
        The folder holds no run, or a bundle or classes that cannot be read (BadBundleError).
    OutputError
        The page exists, or cannot be written.

    Examples
    --------
    >>> from geo_mvmf import progress
    >>> progress.run(training_report_job("runs/photos", "report.html"))  # doctest: +SKIP
    """
    options = options or ReportOptions()
    if not overwrite:
        durable.require_new(out)
    record = run_record.read_run(run)
    image_set, why = yield from _images(record)
    page = _Page(record, options)
    page.remarks += [why] if why else []
    if record.result is None:
        page.unfinished()
    elif image_set is None or not len(image_set.validation):
        page.without_validation(image_set)
    elif record.config.stage == "backbone":
        yield from page.of_backbone(image_set)
    else:
        yield from page.of_model(image_set)
    yield Progress("write", 0, 1, str(out))
    page.write(out, overwrite=overwrite)
    yield Progress("write", 1, 1)
    return RunVerdict(tuple(page.verdict), tuple(page.trouble), page.images)


def _images(record: RunRecord) -> Generator[Progress, None, tuple[ImageSet | None, str]]:
    """The images of the run, or why they are not to be had."""
    try:
        return (yield from load_image_set(record.config)), ""
    except (BadInputError, TrainingError) as error:
        return None, f"The images of the run cannot be looked at: {error}. This page tells what the log holds."


class _Page:
    """A page that grows from top to bottom."""

    def __init__(self, record: RunRecord, options: ReportOptions) -> None:
        self.record, self.options, self.config = record, options, record.config
        self.verdict: list[str] = []
        self.trouble: list[str] = training_troubles.troubles(record, 0, 0)
        self.remarks: list[str] = list(record.remarks)
        self.sections: list[Section] = []
        self.images = 0

    def unfinished(self) -> None:
        """Tell of a run that has no result yet."""
        steps = self.record.steps["step"]
        done = f"{steps.iloc[-1]:.0f}" if len(steps) else "no"
        of = f" of {self.config.steps}" if self.config.steps else ""
        self.verdict.append(
            f"This run is not finished: {done} steps{of} are in its log, and there is no model yet. `geo-mvmf train` "
            "goes on with it when given again; errors and calibration can be told then."
        )
        self.verdict += self._from_log()

    def without_validation(self, image_set: ImageSet | None) -> None:
        """Tell of a run whose held-out images cannot be judged."""
        if image_set is not None:
            self.verdict.append(
                "No images were held out, so nothing is known of how good this model is, and its last step was "
                'released. Train again with validation = "blocks" or "random", or use `geo-mvmf evaluate` on images '
                "that took no part."
            )
        self.verdict += self._from_log()
        if self.config.stage != "backbone":
            self._add_components(self._bundle(), image_set)

    def of_backbone(self, image_set: ImageSet) -> Generator[Progress, None, None]:
        """Tell of a run that classified countries."""
        device = choose_device(self.options.device)
        found = yield from country_results.country_results_job(
            self.config, image_set, device, most=self.options.most_images, workers=self.options.workers
        )
        self.verdict += self._from_log()
        if isinstance(found, str):
            self.remarks.append(found)
            return
        hits = found.truth == found.predicted
        self.images = len(hits)
        places = image_set.directions[found.rows]
        blocks, level = held_out.block_ids(places, self.config.block_level)
        right = resampling.mean_of_clusters(hits, clusters_of(blocks), bounds=(0.0, 1.0))
        shown = training_verdict.percent
        few, interval = too_few(blocks), f" (95 % interval {shown(right.low)} to {shown(right.high)})"
        self.verdict.insert(
            0,
            f"The right class is found for {shown(right.value)} of the {len(hits)} held-out images looked at"
            f"{interval if len(hits) >= LEAST_IMAGES else ''}; always naming the commonest class would find "
            f"{shown(training_sections.commonest_share(found))}."
            + (f" That is too few to tell how good it is: {few}." if few else ""),
        )
        self.trouble = training_troubles.troubles(self.record, len(hits), np.unique(blocks).size)
        self.sections += [
            training_sections.classes_section(found),
            training_sections.confusion_section(found),
            training_sections.class_blocks_section(blocks, level, hits),
        ]

    def of_model(self, image_set: ImageSet) -> Generator[Progress, None, None]:
        """Tell of a run that made a bundle, by its held-out images."""
        bundle, options = self._bundle(), self.options
        self._compare_data(bundle, image_set)
        held = yield from held_out.held_out_job(
            self.config, bundle, image_set, most=options.most_images, workers=options.workers
        )
        if not len(held):
            self.remarks.append(f"None of the {held.num_validation} held-out images can be read or has a density.")
            self.without_validation(None)
            return
        names = image_set.table["image_id"].astype(str).to_numpy(object)[held.rows]
        blocks = held_out.block_ids(image_set.directions[held.rows], self.config.block_level)
        judgement = yield from judge_job(bundle, held, names, blocks)
        ground, self.images = bundle.spec.ground_km, len(held)
        self.verdict += [
            training_verdict.usable_radius(judgement),
            training_verdict.usefulness(judgement),
            training_verdict.calibration(judgement, held, self.record.folder / "bundle.safetensors"),
            training_verdict.split(self.config, held, len(image_set.training), ground),
        ]
        self._count(held)
        self.trouble = training_troubles.troubles(self.record, len(held), np.unique(blocks[0]).size)
        self.sections += [training_sections.figures_section(judgement), training_sections.errors_section(judgement)]
        self._add_components(bundle, image_set)
        self.sections.append(training_sections.blocks_section(judgement))
        yield from self._add_learning_curve(bundle, image_set, held, judgement)

    def write(self, out: str | os.PathLike[str], *, overwrite: bool) -> None:
        """Write the page."""
        first = [section for section in self.sections if section.heading == training_sections.NUMBERS]
        rest = [section for section in self.sections if section.heading != training_sections.NUMBERS]
        trouble = self.trouble or ["None that the curves or the held-out images show."]
        middle = [Section("Signs of trouble", trouble), *self._curves()]
        if self.remarks:
            middle.append(Section("What could not be told", self.remarks))
        name = self.config.description or self.record.folder.resolve().name
        report.write_page(
            out,
            title=f"Training report: {name}",
            introduction=self.verdict,
            sections=[*first, *middle, *rest, training_sections.options_section(self.config)],
            overwrite=overwrite,
        )

    def _curves(self) -> list[Section]:
        """Draw the log, where there is one."""
        steps, validations = self.record.steps, self.record.validations
        if not len(steps) and not len(validations):
            return []
        often = f" It was stopped and went on {self.record.resumed} times." if self.record.resumed else ""
        number = thousands(max(frame["step"].max() for frame in (steps, validations) if len(frame)))
        early = self.record.stopped_early
        often += f" It ended early, after step {early}: the validation NLL fell no more." if early else ""
        text = f"{number} steps of at most {self.config.batch_size} images each.{often}"
        if not training_troubles.losses_compare(self.config):
            text += (
                " The training loss is the cross entropy of cells, the validation NLL that of the density per "
                "steradian, which knows how large a cell is: each has a scale of its own."
            )
        drawn = training_pictures.curves_picture(
            steps, validations, self._best_step(), same_unit=training_troubles.losses_compare(self.config)
        )
        return [Section("Curves", [text], [("Loss, errors of held-out images and learning rate by step", drawn)])]

    def _bundle(self) -> Bundle:
        return load_bundle(self.record.folder / "bundle.safetensors", self.options.device)

    def _best_step(self) -> float:
        best = self.record.best
        return float("nan") if best is None or self.record.result is None else best["step"]

    def _from_log(self) -> list[str]:
        """What the log says of the held-out images, and which they were."""
        best = self.record.best
        if best is None:
            return []
        what = f", median error {training_verdict.km(best['median_km'])}" if np.isfinite(best["median_km"]) else ""
        what += f", accuracy {training_verdict.percent(best['accuracy'])}" if np.isfinite(best["accuracy"]) else ""
        split = training_verdict.split_name(self.config)
        return [f"{split} the best step so far is {best['step']:.0f}, with NLL {best['nll']:.2f} nats{what}."]

    def _compare_data(self, bundle: Bundle, image_set: ImageSet) -> None:
        """Say so where the table gives other images than the run had."""
        told = bundle.metadata["training"]
        if told.get("data_sha256") in (None, image_set.digest()):
            return
        now = len(image_set.training), len(image_set.validation)
        then = told.get("num_training"), told.get("num_validation")
        if now == then:
            text = "with other names, places or weights than those of the run: held-out images may have been trained on"
        else:
            text = (
                f"not the {then[0]} training and {then[1]} held-out images of the run: some could not be read then, or "
                "the table has changed since"
            )
        self.remarks.append(f"The table names {now[0]} training and {now[1]} held-out images now, {text}.")

    def _count(self, held: held_out.HeldOut) -> None:
        if held.num_unreadable:
            self.remarks.append(f"{held.num_unreadable} held-out images cannot be read and are left out.")
        if held.num_outside:
            self.remarks.append(
                f"{held.num_outside} held-out images lie in none of the head's cells, where its density is 0; they are "
                "left out of all figures."
            )

    def _add_components(self, bundle: Bundle, image_set: ImageSet | None) -> None:
        if image_set is not None:
            moved = moved_components.moved_components(self.config, bundle, image_set)
            self.sections.append(training_sections.moved_section(moved))
        self.sections.append(training_sections.counts_section(bundle))

    def _add_learning_curve(
        self, bundle: Bundle, image_set: ImageSet, held: held_out.HeldOut, judgement: Judgement
    ) -> Generator[Progress, None, None]:
        if not self.options.learning_curve:
            self.sections.append(training_sections.no_learning_section())
            return
        points = yield from curves.learning_curve_job(
            self.config, bundle, image_set, held.rows, steps=self.options.curve_steps
        )
        self.sections.append(training_sections.learning_section(points, held, judgement, self.config))
