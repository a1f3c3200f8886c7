"""The verdict: what is said, from how many images on, and what never from a few."""

import dataclasses
import types

import numpy as np
import pytest
from scipy import special

from geo_mvmf import measures, training_verdict
from geo_mvmf.evaluation import Evaluation
from geo_mvmf.metrics import Estimate
from geo_mvmf.training_judgement import Judgement


def judgement_of(n, blocks):
    """Images that a perfectly sure model places well, in so many blocks."""
    rng, cells = np.random.default_rng(0), np.arange(n, dtype=np.uint64) % np.uint64(blocks)
    names = np.arange(n).astype(str).astype(object)
    evaluation = Evaluation(
        image_id=names,
        error_km=rng.uniform(1.0, 9.0, n),
        nll=np.full(n, -5.0),
        searched_probability=rng.random(n),
        searched_area_km2=rng.uniform(1.0, 9.0, n),
        groups=np.full(n, "", object),
        nll_training=np.full(n, 2.0),
        clusters=cells if blocks >= 8 else None,
    )
    return Judgement(evaluation, cells, 4)


def said(judgement):
    none = types.SimpleNamespace(scaling=None, nll_change=None)
    return [
        training_verdict.usable_radius(judgement),
        training_verdict.usefulness(judgement),
        training_verdict.calibration(judgement, none, "bundle.safetensors"),
    ]


def test_enough_images_in_enough_blocks_have_a_verdict():
    near, use, calibrated = said(judgement_of(200, 40))
    assert "(95 % interval " in near
    assert use.startswith("It uses the image")
    assert calibrated.startswith("Calibrated, as far as 200 images can tell")


def with_temperature(change):
    """Held-out images whose best temperature is 1.2, and does this to the NLL of left-out blocks."""
    scaled = types.SimpleNamespace(log_temperature=np.log(1.2), shift=0.0, half_width=np.array([0.1, 0.0]))
    return types.SimpleNamespace(scaling=scaled, nll_change=change)


def judgement_too_sure(n, blocks):
    found = judgement_of(n, blocks)
    searched = 1.0 - 0.3 * np.random.default_rng(1).random(n)
    return dataclasses.replace(found, evaluation=dataclasses.replace(found.evaluation, searched_probability=searched))


NO, SMALL, UNSHOWN, LARGE = None, (-0.02, -0.03, -0.01), (-0.2, -0.5, 0.1), (-0.2, -0.3, -0.1)


@pytest.mark.parametrize(
    ("judged", "change", "begins", "advised"),
    [
        (judgement_of, NO, "Calibrated, as far as 200 images can tell: the 50 % regions hold ", False),
        (judgement_of, SMALL, "Calibrated, as far as 200", False),
        (judgement_of, UNSHOWN, "Calibrated, as far as 200", False),
        (judgement_of, LARGE, "Not quite calibrated: the 50 % regions hold ", True),
        (judgement_too_sure, NO, "Not calibrated, too sure: regions are too small: the 50 % regions hold 0 % (", False),
        (judgement_too_sure, SMALL, "Not calibrated, too sure", True),
        (judgement_too_sure, UNSHOWN, "Not calibrated, too sure", False),
        (judgement_too_sure, LARGE, "Not calibrated, too sure", True),
    ],
)
def test_the_verdict_on_calibration_is_one_with_what_is_advised(judged, change, begins, advised):
    """Whoever reads that it is calibrated finds no command that calibrates it."""
    held = with_temperature(change) if change else types.SimpleNamespace(scaling=None, nll_change=None)
    text = training_verdict.calibration(judged(200, 40), held, "bundle.safetensors")
    assert text.startswith(begins), text
    assert ("geo-mvmf calibrate bundle.safetensors" in text) == advised
    if change:
        numbers = "{:+.2f} nats ({:+.2f} to {:+.2f})".format(*change)
        assert f"The best temperature, 1.20 (1.09 to 1.33), changes the NLL of left-out blocks by {numbers}" in text


@pytest.mark.parametrize(("n", "blocks", "why"), [(1, 1, "1 held-out image, and 20"), (19, 19, "19 held-out images")])
def test_a_few_images_have_no_verdict_and_no_interval(n, blocks, why):
    judgement = judgement_of(n, blocks)
    sentences = said(judgement)
    assert all(why in each for each in sentences)
    assert all(each.startswith("Too few to tell whether") for each in sentences[1:])
    assert "interval" not in sentences[0]
    table = training_verdict.summary_table(judgement).set_index("Figure")["95 % interval"]
    assert (table.iloc[:4] == "too few images to tell").all()
    assert why in training_verdict.learning_curve([50, 100], Estimate(-1.0, -1.0, -1.0, n, 0), judgement.too_few)


@pytest.mark.hard
def test_calibrated_models_are_hardly_ever_told_that_they_are_not():
    """Images of a block are right or wrong together. Broken twin: four intervals of 95 % each, of which one decides."""
    told = alone = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cells = np.repeat(np.arange(12, dtype=np.uint64), rng.integers(2, 9, size=12))
        common = rng.normal(size=12)[cells.astype(int)]
        searched = special.ndtr(np.sqrt(0.5) * (common + rng.normal(size=cells.size)))
        evaluation = judgement_of(cells.size, 8).evaluation
        evaluation = dataclasses.replace(evaluation, searched_probability=searched, clusters=cells)
        none = types.SimpleNamespace(scaling=None, nll_change=None)
        text = training_verdict.calibration(Judgement(evaluation, cells, 4), none, "bundle.safetensors")
        told += text.startswith("Not calibrated")
        table = measures.coverage(evaluation)
        alone += bool(((table["level"] < table["low"]) | (table["level"] > table["high"])).any())
    assert told <= 6 < alone


@pytest.mark.parametrize("nll", [-np.inf, np.inf, np.nan])
def test_a_gain_that_is_no_number_is_no_proof_of_use(nll):
    found = judgement_of(200, 40)
    values = np.where(np.arange(200) < 9, nll, -5.0)
    if np.isnan(nll):
        values[:] = nll
    judgement = dataclasses.replace(found, evaluation=dataclasses.replace(found.evaluation, nll=values))
    assert training_verdict.usefulness(judgement).startswith("It cannot be told whether it uses the image: its gain")
    table = training_verdict.summary_table(judgement).set_index("Figure")["95 % interval"]
    assert table["Gain over the training images' density"] == "unknown"


def test_of_few_blocks_nine_of_ten_have_no_upper_end():
    """35 blocks may all lie below the true one, 0.9^35 > 2.5 %; 36 hardly."""
    few = training_verdict.usable_radius(judgement_of(200, 35))
    assert "; 35 blocks are too few for an upper end)." in few
    assert " (at least " in few
    assert "upper end" not in training_verdict.usable_radius(judgement_of(200, 36))
    assert training_verdict.summary_table(judgement_of(200, 35))["95 % interval"][1].endswith(" km or more")


def test_of_few_blocks_the_interval_says_what_it_counts_and_there_is_no_verdict():
    near, use, calibrated = said(judgement_of(200, 7))
    assert "(95 % interval over images, not land: " in near
    assert all("200 held-out images in 7 blocks of land, and 8 are needed" in each for each in (use, calibrated))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Estimate(-0.3, -0.4, -0.2, 9, 0), "More images still help"),
        (Estimate(0.01, -0.01, 0.03, 9, 0), "hardly help"),
        (Estimate(-0.1, -0.3, 0.1, 9, 0), "do not tell"),
        (None, "too few training images"),
    ],
)
def test_the_learning_curve_says_what_more_images_bring(change, said):
    assert said in training_verdict.learning_curve([500, 1000], change)
