"""The sections of a training run's report: what each figure is made of, with its picture and its table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from geo_mvmf import pictures, report, resampling, s2, sphere, training_pictures, training_verdict
from geo_mvmf.map_axes import thousands
from geo_mvmf.model.bundle import Bundle
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.country_results import CountryResults
from geo_mvmf.model.held_out import HeldOut
from geo_mvmf.model.learning_curve import CurvePoint
from geo_mvmf.model.moved_components import MovedComponents
from geo_mvmf.report import Section
from geo_mvmf.training_judgement import Judgement, box_text, coarser_blocks, polygons_of, share_by_block

_WORST = 10
_LEAST_OF_BLOCK = 3  # images of a block, for the list of the worst: one image tells nothing of land
_LARGEST_CLASSES = 10

NUMBERS = "The verdict in numbers"
"""Heading of the section that stands right below the verdict."""

_LEARNING = "Learning curve: how much data is needed?"


def commonest_share(found: CountryResults) -> float:
    """Give the share that always naming the commonest training class would get right.

    Parameters
    ----------
    found : CountryResults

    Returns
    -------
    float
    """
    return float((found.truth == int(found.training_counts.argmax())).mean())


def figures_section(judgement: Judgement) -> Section:
    """Make the section of the verdict's figures.

    Parameters
    ----------
    judgement : Judgement

    Returns
    -------
    Section
    """
    counted = f"S2 cells of level {judgement.level}" if judgement.evaluation.clusters is not None else "single images"
    return Section(
        NUMBERS, [f"Intervals hold 95 % and count {counted}."], (), [("", training_verdict.summary_table(judgement))]
    )


def errors_section(judgement: Judgement) -> Section:
    """Make the section of errors at all distances and of calibration, where there are images enough all figures.

    Parameters
    ----------
    judgement : Judgement
    """
    drawn = [
        (
            "How far the estimates (the heaviest component) are from the truth",
            pictures.accuracy_picture(judgement.evaluation),
        ),
        ("Is the probability true? Inside the grey band it is", pictures.coverage_picture(judgement.evaluation)),
    ]
    told = [("All figures", report.figures(judgement.evaluation))] if judgement.has_intervals else []
    return Section("Errors and calibration", (), drawn, told)


def moved_section(found: MovedComponents | str) -> Section:
    """Make the section of the components' ways.

    Parameters
    ----------
    found : MovedComponents or str
        From `moved_components`.

    Returns
    -------
    Section
    """
    heading = "How the components moved"
    if isinstance(found, str):
        return Section(heading, [found])
    drawn = []
    if found.shift_km.any():
        ways = training_pictures.moved_picture(found.start, found.end, found.images)
        drawn.append(("Mean directions: from where they began to where they are", ways))
    if (found.start_log_concentrations != found.end_log_concentrations).any():
        widths = training_pictures.widths_picture(found.start_log_concentrations, found.end_log_concentrations)
        drawn.append(("Concentrations before and after", widths))
    return Section(heading, moved_text(found), drawn)


def moved_text(found: MovedComponents) -> list[str]:
    """Say how far the components moved.

    Parameters
    ----------
    found : MovedComponents

    Returns
    -------
    list of str
        Of mean directions and of concentrations.

    Examples
    --------
    >>> still = MovedComponents(np.eye(3), np.eye(3), np.full(3, 16.0), np.full(3, 16.0), np.ones(3, int))
    >>> moved_text(still)[0]
    'The mean directions did not move.'
    """
    km, shift = training_verdict.km, found.shift_km
    half, most = (_weighted_quantile(shift, found.images, share) for share in (0.5, 0.9))
    ways = (
        f"Counted by images, half of the components moved less than {km(half)}, nine of ten less than {km(most)}; the "
        f"farthest {km(float(shift.max()))}."
    )
    both = found.start_log_concentrations, found.end_log_concentrations
    before, after = (km(_weighted_quantile(training_pictures.half_radius_km(each), found.images, 0.5)) for each in both)
    radius = "The radius that holds half of a component"
    widths = f"{radius} was {before} in the middle before training and is {after}."
    if np.array_equal(*both):
        widths = f"{radius} is {after} in the middle, as before."
    return [ways if shift.any() else "The mean directions did not move.", widths]


def _weighted_quantile(values: Any, weights: Any, share: float) -> float:
    """The least value that at least so large a share of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, share * total[-1])])


def counts_section(bundle: Bundle) -> Section:
    """Make the section of the training images of each component.

    Parameters
    ----------
    bundle : Bundle

    Returns
    -------
    Section
    """
    images = bundle.training_counts
    used, empty = np.sort(images[images > 0])[::-1], images == 0
    tenth = max(1, round(len(images) / 10))
    rows = [
        ("Components", thousands(len(images))),
        ("Training images in their classes", thousands(images.sum())),
        ("Components without any", f"{thousands(empty.sum())} ({training_verdict.percent(float(empty.mean()))})"),
        ("Images of a component that has some, in the middle", thousands(float(np.median(used)) if used.size else 0.0)),
        ("Images of the fullest component", thousands(images.max(initial=0))),
        ("Images in the fullest tenth of the components",
         training_verdict.percent(float(used[:tenth].sum() / max(images.sum(), 1)))),
    ]  # fmt: skip
    drawn = [("How many components have how many images", training_pictures.counts_picture(images))]
    return Section("Images per component", (), drawn, [("", pd.DataFrame(rows, columns=["What", "Value"]))])


def _wide(level: int) -> str:
    width = training_verdict.km(float(s2.edge_length(level)) * sphere.EARTH_RADIUS_KM)
    return f"Blocks are S2 cells of level {level}, about {width} wide."


def blocks_section(judgement: Judgement) -> Section:
    """Make the section of blocks by their errors.

    Parameters
    ----------
    judgement : Judgement

    Returns
    -------
    Section
    """
    blocks, level = judgement.blocks()
    picture = training_pictures.blocks_picture(
        polygons_of(blocks["cell"]), np.maximum(blocks["median_km"].to_numpy(float), 1e-3), label="median error (km)"
    )
    worst, which = _worst(blocks)
    table = pd.DataFrame(
        {
            "Block": [box_text(int(cell)) for cell in worst["cell"]],
            "Images": worst["images"].to_numpy(),
            "Median error (km)": _rounded_km(worst["median_km"]),
            "NLL (nats)": worst["nll"].to_numpy(),
        }
    )
    return Section(
        "Which blocks fail?", [_wide(level)], [("Median error of held-out images", picture)], [(which, table)]
    )


def _worst(blocks: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The worst blocks, and which were compared; those of one image only where there are no others."""
    several = blocks[blocks["images"] >= _LEAST_OF_BLOCK]
    if len(several) >= _WORST:
        return several.head(_WORST), f"The worst of {len(several)} blocks with {_LEAST_OF_BLOCK} images or more"
    return blocks.head(_WORST), f"The worst of {len(blocks)} blocks"


def _rounded_km(values: Any) -> Any:
    """Whole kilometres, where that is enough."""
    known = np.asarray(values, dtype=np.float64)
    return known.round().astype(np.int64) if np.isfinite(known).all() and known.min(initial=np.inf) >= 10.0 else known


def class_blocks_section(blocks: Any, level: int, hits: Any) -> Section:
    """Make the section of blocks by the share of right classes.

    Parameters
    ----------
    blocks : ndarray of uint64, (n,)
        S2 cell of each held-out image.
    level : int
        Of these cells.
    hits : ndarray of bool, (n,)

    Returns
    -------
    Section
    """
    blocks, level = coarser_blocks(blocks, level)
    found = share_by_block(blocks, hits)
    picture = training_pictures.blocks_picture(
        polygons_of(found["cell"]), found["share"].to_numpy(float), label="right class", is_share=True
    )
    worst, which = _worst(found)
    shown = training_verdict.percent
    table = pd.DataFrame(
        {
            "Block": [box_text(int(cell)) for cell in worst["cell"]],
            "Images": worst["images"].to_numpy(),
            "Right": [shown(value) for value in worst["share"]],
            "95 % interval": [
                f"{shown(low)} to {shown(high)}" for low, high in zip(worst["low"], worst["high"], strict=True)
            ],
        }
    )
    return Section(
        "Which blocks fail?",
        [_wide(level)],
        [("Share of the right class among held-out images", picture)],
        [(which, table)],
    )


def classes_section(found: CountryResults) -> Section:
    """Make the section of the accuracy of each class.

    Parameters
    ----------
    found : CountryResults

    Returns
    -------
    Section
    """
    truth, shown = found.truth, training_verdict.percent
    held = np.bincount(truth, minlength=len(found.names))
    right = np.bincount(truth[truth == found.predicted], minlength=len(found.names))
    order = np.argsort(-held, kind="stable")[: int((held > 0).sum())]
    rows = [(found.names[k], found.training_counts[k], held[k], shown(right[k] / held[k])) for k in order.tolist()]
    table = pd.DataFrame(rows, columns=["Class", "Training images", "Held-out images", "Right"])
    text = f"{len(order)} of {len(found.names)} classes have held-out images."
    return Section("Accuracy of each class", [text], (), [("", table)])


def confusion_section(found: CountryResults) -> Section:
    """Make the section of what is taken for what.

    Parameters
    ----------
    found : CountryResults

    Returns
    -------
    Section
    """
    held = np.bincount(found.truth, minlength=len(found.names))
    largest = np.argsort(-held, kind="stable")[: min(_LARGEST_CLASSES, int((held > 0).sum()))]
    columns: dict[str, Any] = {"True class": [found.names[k] for k in largest.tolist()]}
    for k in largest.tolist():
        taken = [int(((found.truth == row) & (found.predicted == k)).sum()) for row in largest.tolist()]
        columns[f"as {found.names[k]}"] = taken
    others = ~np.isin(found.predicted, largest)
    columns["as another"] = [int((others & (found.truth == row)).sum()) for row in largest.tolist()]
    text = "Held-out images of the largest classes: rows are the true classes, columns what was predicted."
    return Section("What is taken for what", [text], (), [("", pd.DataFrame(columns))])


def no_learning_section() -> Section:
    """Make the section that says how to get a learning curve.

    Returns
    -------
    Section
    """
    text = (
        "Not made: it trains four heads on shares of the images, which takes a while. Add --learning-curve to the "
        "command."
    )
    return Section(_LEARNING, [text])


def learning_section(points: list[CurvePoint], held: HeldOut, judgement: Judgement, config: TrainingConfig) -> Section:
    """Make the section of the learning curve.

    Parameters
    ----------
    points : list of CurvePoint
    held : HeldOut
        Whose rows judged the heads.
    judgement : Judgement
        Of these rows.
    config : TrainingConfig

    Returns
    -------
    Section
    """

    def blocks(rows: Any) -> Any:
        return judgement.clusters[np.searchsorted(held.rows, rows)]

    nll = [resampling.mean_of_clusters(point.nll, blocks(point.rows))[:3] for point in points]
    median = [resampling.median_of_clusters(point.error_km, blocks(point.rows))[:3] for point in points]
    images, change, told = [point.images for point in points], None, judgement.has_intervals
    if len(points) > 1:
        rows, first, last = np.intersect1d(points[-2].rows, points[-1].rows, return_indices=True)
        change = resampling.mean_of_clusters(points[-1].nll[last] - points[-2].nll[first], blocks(rows))
    table = pd.DataFrame(
        {
            "Training images": images,
            "Components": [point.components for point in points],
            "NLL (nats)": [value for value, _, _ in nll],
            "NLL, 95 % interval": training_verdict.nats_ranges(nll, told=told),
            "Median error (km)": _rounded_km([value for value, _, _ in median]),
        }
    )
    own = float(judgement.evaluation.nll.mean())
    text = [
        training_verdict.learning_curve(images, change, judgement.too_few),
        (
            "Each head begins anew with the classes of its share and learns by the run's recipe, with fewer steps, on "
            f"the frozen features of the finished run, whose own NLL is {own:.2f} nats."
        ),
    ]
    if config.stage == "finetune":
        text.append(
            "The network behind the features was trained on all images, so the curve shows what the head alone gains: "
            "the whole model gains more from more images."
        )
    picture = training_pictures.learning_curve_picture(images, nll, median)
    return Section(_LEARNING, text, [("Held-out images by the number of training images", picture)], [("", table)])


def options_section(config: TrainingConfig) -> Section:
    """Make the section of the run's options.

    Parameters
    ----------
    config : TrainingConfig

    Returns
    -------
    Section
    """
    rows = []
    plain = TrainingConfig(stage=config.stage, table=config.table, out=config.out, polygons=config.polygons)
    for name, value in _flat(config).items():
        default = _flat(plain)[name]
        rows.append((name, _shown(value), "" if value == default else _shown(default)))
    text = "As they were resolved when the run began; the default stands beside what differs from it."
    return Section("Options of the run", [text], (), [("", pd.DataFrame(rows, columns=["Option", "Value", "Default"]))])


def _flat(config: TrainingConfig) -> dict[str, Any]:
    values = config.to_dict()
    augment = values.pop("augment")
    return values | {f"augment.{name}": value for name, value in augment.items()}


def _shown(value: object) -> str:
    text = str(value).encode("utf-8", "backslashreplace").decode("utf-8")  # tables hold no surrogates
    return "none" if value is None else text.lower() if isinstance(value, bool) else text
