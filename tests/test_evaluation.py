"""Evaluation: every image with a truth counts, and the figures are those of the densities."""

import math

import numpy as np
import pandas as pd
import pytest

import geo_mvmf
from geo_mvmf import evaluation, metrics
from geo_mvmf.errors import BadInputError
from geo_mvmf.files import stores
from geo_mvmf.inputs.tables import read_truth
from geo_mvmf.predictions import open_predictions
from geo_mvmf.sphere import great_circle_distance_km, to_directions, to_longitude_latitude

N = 40


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Predictions whose truths are drawn from their own densities, and five images without a prediction."""
    generator = np.random.default_rng(0)
    means = to_directions(generator.uniform(-180, 180, 12), generator.uniform(-60, 60, 12))
    concentrations = np.full(12, 5.0)
    logs = generator.normal(size=(N, 12)) * 2
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    mixture = geo_mvmf.VmfMixture(means, concentrations, logs)
    truth = np.stack(to_longitude_latitude(mixture.sample(1, seed=2).reshape(-1, 3)), axis=1)  # (N, 2)
    places = geo_mvmf.estimate(mixture)
    status = np.where(np.arange(N) % 8 == 3, "failed", "ok")
    bad = status == "failed"
    logs[bad], places[bad] = np.nan, np.nan
    rows = pd.DataFrame(
        {
            "image_id": [f"{i}.jpg" for i in range(N)],
            "status": status,
            "message": "",
            "longitude": places[:, 0],
            "latitude": places[:, 1],
            "true_longitude": truth[:, 0],
            "true_latitude": truth[:, 1],
            "land": np.where(np.arange(N) < 10, "A", "B"),
        }
    )
    shared = stores.Components("vmf", means, concentrations, np.ones(12, int), np.zeros(12, np.uint64))
    path = tmp_path_factory.mktemp("simulated") / "a.nc"
    stores.write_store(path, rows=rows, pruned=stores.prune(logs, tail=0.0), components=shared, run={})
    return open_predictions(path), mixture, truth


def test_errors_and_likelihoods_are_those_of_the_densities(simulated):
    found, mixture, truth = simulated
    result = geo_mvmf.evaluate(found)
    good = found.is_predicted
    assert result.n == N
    expected = great_circle_distance_km(found.rows["longitude"], found.rows["latitude"], truth[:, 0], truth[:, 1])
    np.testing.assert_allclose(result.error_km, expected)
    log_density = np.diagonal(mixture.log_density(to_directions(truth[:, 0], truth[:, 1])))
    np.testing.assert_allclose(result.nll[good], -log_density[good], atol=1e-5)
    assert np.isnan(result.nll[~good]).all()
    assert np.isnan(result.error_km[~good]).all()


def test_images_without_a_prediction_count_as_wrong(simulated):
    """PRIOR_ART row 22; the broken twin drops them and looks better."""
    found, _, _ = simulated
    result = geo_mvmf.evaluate(found)
    bad = int((~found.is_predicted).sum())
    assert bad == 5
    accuracy = result.accuracy
    assert (accuracy.n, accuracy.n_nan) == (N, bad)
    honest = metrics.accuracy_at_km(result.error_km, [25000.0])
    dropped = metrics.accuracy_at_km(result.error_km[np.isfinite(result.error_km)], [25000.0])
    assert honest.value[0] == pytest.approx((N - bad) / N)
    assert dropped.value[0] == 1.0
    table = result.table().set_index("measure")
    assert (table["n"] == N).all()
    assert (table["n_nan"] == bad)[~table.index.isin(["geo_score"])].all()


def test_truths_drawn_from_the_densities_are_covered(simulated):
    result = geo_mvmf.evaluate(simulated[0])
    searched = result.searched_probability[np.isfinite(result.searched_probability)]
    assert searched.size == N - 5
    assert abs(searched.mean() - 0.5) < 4 / math.sqrt(12 * searched.size)
    table = result.table().set_index("measure")
    for level in evaluation.COVERAGE_LEVELS:
        row = table.loc[f"coverage_of_{level:g}_region"]
        assert row["value"] == pytest.approx((searched <= level).mean())
        assert row["low"] <= row["value"] <= row["high"]
        assert abs(row["value"] - level) < 4 * math.sqrt(level * (1 - level) / searched.size)


def test_a_truth_in_another_order_gives_the_same(simulated):
    found, _, truth = simulated
    table = pd.DataFrame({"image_id": found.rows["image_id"], "lon": truth[:, 0], "lat": truth[:, 1]})
    shuffled = read_truth(table.sample(frac=1.0, random_state=1))
    first, second = geo_mvmf.evaluate(found), geo_mvmf.evaluate(found, shuffled)
    pd.testing.assert_frame_equal(first.images(), second.images())
    some = geo_mvmf.evaluate(found, read_truth(table.iloc[:7]))
    assert some.n == 7
    assert some.image_id.tolist() == table["image_id"].tolist()[:7]


def test_groups_add_up(simulated):
    result = geo_mvmf.evaluate(simulated[0], by="land")
    table = result.table()
    counts = table[table["measure"] == "accuracy_at_25_km"].set_index("group")["n"].to_dict()
    assert counts == {"all": N, "A": 10, "B": N - 10}
    truth = pd.DataFrame(
        {"image_id": simulated[0].rows["image_id"], "longitude": 0.0, "latitude": 0.0, "x": [1, 2] * 20}
    )
    assert set(geo_mvmf.evaluate(simulated[0], truth, by="x").groups) == {"1", "2"}


def test_the_table_is_tidy_and_its_intervals_hold_their_values(simulated):
    table = geo_mvmf.evaluate(simulated[0]).table()
    assert table.columns.tolist() == ["group", "measure", "value", "low", "high", "n", "n_nan"]
    assert table["measure"].tolist() == [
        *(f"accuracy_at_{km}_km" for km in (1, 25, 200, 750, 2500)),
        "coverage_of_0.5_region", "coverage_of_0.9_region", "median_error_km", "geo_score", "nll_nats",
    ]  # fmt: skip
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_chance_is_the_share_of_the_sphere(simulated):
    result = geo_mvmf.evaluate(simulated[0])
    np.testing.assert_allclose(result.chance([0.0, math.pi * 6371.0088, 1e9]), [0.0, 1.0, 1.0])
    assert result.chance(math.pi / 2 * 6371.0088) == pytest.approx(0.5)


def test_a_truth_that_has_columns_of_our_names_too_is_read_by_its_longitude_and_latitude(simulated):
    found, _, truth = simulated
    table = pd.DataFrame({"image_id": ["0.jpg"], "longitude": truth[0, 0], "latitude": truth[0, 1]})
    result = geo_mvmf.evaluate(found, table.assign(true_longitude=0.0, true_latitude=0.0))
    np.testing.assert_allclose(result.error_km, geo_mvmf.evaluate(found, table).error_km)


def test_what_cannot_be_compared_says_why(simulated):
    found, _, _ = simulated
    truth = pd.DataFrame({"image_id": ["zz"], "longitude": [0.0], "latitude": [0.0]})
    with pytest.raises(BadInputError, match=r"are like '0\.jpg', those of the truth like 'zz'"):
        geo_mvmf.evaluate(found, truth)
    with pytest.raises(BadInputError, match="'zz' more than once"):
        geo_mvmf.evaluate(found, pd.concat([truth, truth]))
    with pytest.raises(BadInputError, match="cannot group by 'no'"):
        geo_mvmf.evaluate(found, by="no")
    with pytest.raises(BadInputError, match="no row has a longitude and latitude"):
        read_truth(pd.DataFrame({"image_id": ["a"], "lon": [None], "lat": [None]}))
    with pytest.raises(BadInputError, match="no column 'path' or 'image_id'"):
        read_truth(pd.DataFrame({"lon": [1.0], "lat": [2.0]}))
