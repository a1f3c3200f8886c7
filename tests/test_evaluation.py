"""Evaluation: every image with a truth counts, and the figures are those of the densities."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

import geo_mvmf
from geo_mvmf import baselines, evaluation, metrics, s2
from geo_mvmf.errors import AmbiguousInputError, BadInputError, UsageError
from geo_mvmf.files import stores
from geo_mvmf.inputs.truth_tables import read_truth
from geo_mvmf.maps import summaries
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
    expected = summaries.summarise(mixture, *places.T)["expected_error_km"].where(~bad)
    logs[bad], places[bad] = np.nan, np.nan
    rows = pd.DataFrame(
        {
            "image_id": [f"{i}.jpg" for i in range(N)],
            "status": status,
            "message": "",
            "longitude": places[:, 0],
            "latitude": places[:, 1],
            "estimator": np.where(bad, None, "component"),
            "expected_error_km": expected,
            "true_longitude": truth[:, 0],
            "true_latitude": truth[:, 1],
            "land": np.where(np.arange(N) < 10, "A", "B"),
        }
    )
    cells = np.sort(np.concatenate([s2.face_cells()[:4], s2.children(s2.face_cells()[4:]).ravel()]))  # twelve
    shared = stores.Components("vmf", means, concentrations, np.arange(12), cells)
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
    assert (table["n_nan"] == bad)[table.index != "nll_of_training_density_nats"].all()


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
    assert table.columns.tolist() == ["group", "measure", "estimator", "value", "low", "high", "n", "n_nan"]
    assert table["measure"].tolist() == [
        *(f"accuracy_at_{km}_km" for km in (1, 25, 200, 750, 2500)), "median_error_km", "mean_error_km", "geo_score",
        *(f"coverage_of_{level}_region" for level in (0.5, 0.8, 0.9, 0.95)), "mean_searched_probability",
        "median_searched_area_km2", "mean_expected_error_km", "nll_nats", "nll_of_training_density_nats",
        "gain_over_training_density_nats",
    ]  # fmt: skip
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_baselines_and_expectations_stand_beside_the_figures(simulated):
    found, _, truth = simulated
    result = geo_mvmf.evaluate(found)
    table = result.table().set_index("measure")["value"]
    components = found.store.components
    baseline = baselines.training_nll(components.cell_ids, components.training_counts, *truth.T)
    assert table["nll_of_training_density_nats"] == pytest.approx(baseline.mean())
    good = found.is_predicted
    assert table["gain_over_training_density_nats"] == pytest.approx((baseline - result.nll)[good].mean())
    assert table["gain_over_training_density_nats"] > 0.5  # these densities know where their truths are
    assert table["mean_error_km"] == pytest.approx(np.nanmean(result.error_km))
    # truths are drawn from the densities: the error they expect is the error they have
    assert table["mean_expected_error_km"] == pytest.approx(table["mean_error_km"], rel=0.35)
    assert table["median_searched_area_km2"] == pytest.approx(
        np.median(np.nan_to_num(result.searched_area_km2, nan=np.inf))
    )


def test_every_estimator_asked_for_has_its_accuracy(simulated):
    found, mixture, truth = simulated
    result = geo_mvmf.evaluate(found, estimators=["mode"])
    assert list(result.errors_by_estimator) == ["component", "mode"]
    places = geo_mvmf.estimate(mixture, "mode")
    expected = great_circle_distance_km(*places.T, *truth.T)
    good = found.is_predicted
    np.testing.assert_allclose(result.other_errors_km["mode"][good], expected[good], atol=1e-3)
    assert np.isnan(result.other_errors_km["mode"][~good]).all()
    table = result.table()
    assert set(table.loc[table["measure"] == "accuracy_at_750_km", "estimator"]) == {"component", "mode"}
    assert set(table.loc[table["measure"] == "nll_nats", "estimator"]) == {""}
    assert "error_km_mode" in result.images()
    with pytest.raises(UsageError, match="estimator 'best'"):
        geo_mvmf.evaluate(found, estimators=["best"])


def test_the_curve_of_simulated_truths_is_in_its_band_and_a_sharper_model_s_is_not(simulated):
    """The P-P curve; the broken twin says its regions hold more than they do."""
    found, mixture, truth = simulated
    result = geo_mvmf.evaluate(found)
    curve = result.curve(np.linspace(0.05, 0.95, 19))
    assert ((curve["low"] <= curve["share"]) & (curve["share"] <= curve["high"])).mean() > 0.8
    sharp = geo_mvmf.VmfMixture(mixture.mean_directions, mixture.log_concentrations + 3.0, mixture.log_mixing_weights)
    searched = summaries.at_truth(sharp, *truth.T)["searched_probability"].to_numpy()
    twin = dataclasses.replace(result, searched_probability=searched).curve(np.linspace(0.05, 0.95, 19))
    assert ((twin["low"] <= twin["share"]) & (twin["share"] <= twin["high"])).mean() < 0.5
    whole = result.curve()
    assert whole["level"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert whole["share"].iloc[-1] == 1.0


def test_clusters_widen_intervals_and_change_no_value(simulated):
    found, _, truth = simulated
    ids = found.rows["image_id"]
    table = pd.DataFrame(
        {"image_id": ids, "longitude": truth[:, 0], "latitude": truth[:, 1], "walk": np.arange(N) // 4}
    )
    alone = geo_mvmf.evaluate(found, table).table()
    together = geo_mvmf.evaluate(found, table, cluster_by="walk").table()
    pd.testing.assert_frame_equal(alone.drop(columns=["low", "high"]), together.drop(columns=["low", "high"]))
    assert ((together["low"] <= together["value"]) & (together["value"] <= together["high"])).all()
    never = together.set_index("measure").loc["accuracy_at_1_km"]  # ten clusters without a hit: not a width of 0
    assert (never["value"], never["low"], never["high"]) == (0.0, 0.0, pytest.approx(metrics.wilson_interval(0, 10)[1]))
    few = geo_mvmf.evaluate(found, table.assign(walk=np.arange(N) // 8), cluster_by="walk")
    assert few.few_clusters == 5
    assert few.table()[["low", "high"]].isna().all(axis=None)
    assert together["low"].notna().all()
    own = geo_mvmf.evaluate(found, table.assign(walk=np.arange(N) + 100), cluster_by="walk").table()
    means = own["measure"].str.contains("mean|nll|score|gain")
    assert means.sum() == 7
    pd.testing.assert_frame_equal(own[means], alone[means])  # one rule: without clusters every image is its own
    blocks = geo_mvmf.evaluate(found, table, block_level=2)
    assert len(np.unique(blocks.clusters)) < N
    with pytest.raises(UsageError, match=r"predictions is 'a\.nc': open_predictions reads a predictions file"):
        geo_mvmf.evaluate("a.nc")
    with pytest.raises(UsageError, match=r"truth is 'a\.csv': read_image_table makes a table of a file"):
        geo_mvmf.evaluate(found, "a.csv")
    with pytest.raises(UsageError, match="choose one"):
        geo_mvmf.evaluate(found, table, cluster_by="walk", block_level=2)
    with pytest.raises(UsageError, match=r"block_level 31 is not in 0\.\.30"):
        geo_mvmf.evaluate(found, block_level=31)


def test_points_of_another_system_have_the_same_figures(simulated):
    """Without densities there are figures of points only; a point that is missing counts as wrong."""
    found, _, truth = simulated
    rows = found.rows[["image_id", "longitude", "latitude", "true_longitude", "true_latitude", "land"]]
    points = geo_mvmf.evaluate(rows, by="land")
    ours = geo_mvmf.evaluate(found, by="land")
    np.testing.assert_allclose(points.error_km, ours.error_km)
    table = points.table()
    assert not table["measure"].str.contains("coverage|nll|searched").any()
    own = ours.table()
    own = own[own["estimator"] == "component"].drop(columns="estimator").reset_index(drop=True)
    pd.testing.assert_frame_equal(table.drop(columns="estimator"), own)
    separate = pd.DataFrame({"image_id": rows["image_id"], "lon": truth[:, 0], "lat": truth[:, 1]}).iloc[::-1]
    bare = rows[["image_id", "longitude", "latitude"]]
    np.testing.assert_allclose(geo_mvmf.evaluate(bare, read_truth(separate)).error_km, ours.error_km)
    with pytest.raises(UsageError, match="estimators mode need densities"):
        geo_mvmf.evaluate(rows, estimators=["mode"])
    with pytest.raises(BadInputError, match="row 3: latitude"):
        geo_mvmf.evaluate(rows.assign(latitude=rows["latitude"].where(rows.index != 2, 95.0)))


def test_images_without_a_truth_or_a_group_are_told(simulated):
    found, _, truth = simulated
    lands = pd.Series(["A", None, ""] + ["B"] * 7)
    table = pd.DataFrame({"image_id": found.rows["image_id"].iloc[:10], "longitude": truth[:10, 0], "latitude": 0.0})
    result = geo_mvmf.evaluate(found, table.assign(region=lands), by="region")
    assert result.n_without_truth == N - 10
    assert result.table().groupby("group")["n"].first().to_dict() == {"A": 1, "B": 7, "all": 10, "unknown": 2}


def test_chance_is_the_share_of_the_sphere(simulated):
    result = geo_mvmf.evaluate(simulated[0])
    np.testing.assert_allclose(result.chance([0.0, math.pi * 6371.0088, 1e9]), [0.0, 1.0, 1.0])
    assert result.chance(math.pi / 2 * 6371.0088) == pytest.approx(0.5)


def test_a_truth_that_has_columns_of_our_names_too_is_read_by_its_longitude_and_latitude(simulated):
    found, _, truth = simulated
    table = pd.DataFrame({"image_id": ["0.jpg"], "longitude": truth[0, 0], "latitude": truth[0, 1]})
    result = geo_mvmf.evaluate(found, table.assign(true_longitude=0.0, true_latitude=0.0))
    np.testing.assert_allclose(result.error_km, geo_mvmf.evaluate(found, table).error_km)


def test_an_evaluation_is_printed_as_its_table():
    points = pd.DataFrame({"longitude": [7.0, 8.0], "latitude": [50.0, 51.0]})
    result = geo_mvmf.evaluate(points.assign(true_longitude=7.0, true_latitude=50.0))
    assert repr(result) == "Evaluation(2 images with a truth; print or .table() shows the figures)"
    lines = str(result).splitlines()
    assert lines[0].split()[:3] == ["group", "measure", "estimator"]
    assert len(lines) == 1 + len(result.table())


def test_what_cannot_be_compared_says_why(simulated):
    found, _, _ = simulated
    truth = pd.DataFrame({"image_id": ["zz"], "longitude": [0.0], "latitude": [0.0]})
    with pytest.raises(BadInputError, match=r"are like '0\.jpg', those of the truth like 'zz'"):
        geo_mvmf.evaluate(found, truth)
    with pytest.raises(BadInputError, match="'zz' more than once"):
        geo_mvmf.evaluate(found, pd.concat([truth, truth]))
    with pytest.raises(BadInputError, match="cannot group by 'no': the columns are image_id"):
        geo_mvmf.evaluate(found, by="no")
    with pytest.raises(
        BadInputError, match=r"cannot group by 'statsu'; did you mean 'status'\? the columns are image_id"
    ):
        geo_mvmf.evaluate(found, by="statsu")
    with pytest.raises(BadInputError, match="no row has a longitude and latitude"):
        read_truth(pd.DataFrame({"image_id": ["a"], "lon": [None], "lat": [None]}))
    with pytest.raises(BadInputError, match="no column 'path' or 'image_id'"):
        read_truth(pd.DataFrame({"lon": [1.0], "lat": [2.0]}))


def test_a_truth_that_is_swapped_is_refused_where_rows_are_out_of_range():
    """Those in range would be compared with wrong places."""
    truth = pd.DataFrame({"image_id": range(6), "lon": [52.0, 48, 40, 35, 31, 59], "lat": [7.0, 16, 116, 139, 121, 30]})
    with pytest.raises(BadInputError, match=r"3 of 6 rows .* first is row 3: latitude 116.* exchange the two columns"):
        read_truth(truth)
    with pytest.warns(UserWarning, match=r"3 of 7 rows .* are not compared; the first is row 3: latitude 116"):
        found = read_truth(pd.concat([truth, pd.DataFrame({"image_id": [6], "lon": [151.0], "lat": [-34.0]})]))
    assert found["longitude"].isna().sum() == 3  # one row is right as it stands: slips, one by one
    with pytest.raises(BadInputError, match=r"no row has .* as the truth; the first is row 1: latitude 5400000.0"):
        read_truth(truth.assign(lat=5.4e6))


def test_a_truth_in_metres_is_read_with_its_crs():
    truth = pd.DataFrame({"image_id": ["a", "b"], "x": [779236.4, 0.0], "y": [6446275.8, 0.0]})
    with pytest.raises(AmbiguousInputError, match=r"'x' and 'y': the CRS is unknown; .* \(crs=\)") as caught:
        read_truth(truth)
    assert "geo-mvmf table" not in caught.value.told()  # which refuses what names no images
    found = read_truth(truth, crs="EPSG:3857")
    assert found[["longitude", "latitude"]].round(4).to_numpy().tolist() == [[7.0, 50.0], [0.0, 0.0]]
    with pytest.raises(BadInputError, match=r"metres\? .* or columns x and y and the option that says their CRS"):
        read_truth(truth.rename(columns={"x": "lon", "y": "lat"}).iloc[:1])


@pytest.mark.parametrize("is_truth", [True, False])
def test_a_truth_that_is_swapped_in_range_is_told_by_the_estimates(is_truth):
    longitude, latitude = np.random.default_rng(0).uniform([[5.0], [45.0]], [[15.0], [55.0]], (2, 30))
    right = pd.DataFrame({"longitude": longitude, "latitude": latitude + 1.0})
    right = right.assign(true_longitude=longitude, true_latitude=latitude)
    right.loc[3, ["longitude", "latitude"]] = np.nan
    turned = [f"{'true_' * is_truth}{name}" for name in ("longitude", "latitude")]
    swapped = right.rename(columns=dict(zip(turned, turned[::-1], strict=True)))
    with pytest.warns(UserWarning, match=r"half of 29 estimates are more than 5,.* km from the truth, .* exchange"):
        evaluation.evaluate(swapped)
    evaluation.evaluate(right)
    evaluation.evaluate(right.assign(longitude=30.0, latitude=10.0))  # far off, and not by that
    evaluation.evaluate(swapped[:15])


def test_a_column_of_many_numbers_makes_no_groups():
    points = pd.DataFrame({"longitude": np.zeros(120), "latitude": 0.0, "true_longitude": 1.0, "true_latitude": 0.0})
    points = points.assign(height=np.arange(120) % 25 + 0.5, hour=np.arange(120) % 24, name=np.arange(120).astype(str))
    with pytest.raises(BadInputError, match=r"it holds 25 different numbers, and more than 24 .*, or codes as text"):
        evaluation.evaluate(points, by="height")
    assert len(set(evaluation.evaluate(points, by="hour").groups)) == 24
    assert len(set(evaluation.evaluate(points, by="name").groups)) == 120


def test_what_a_system_does_not_name_it_did_not_find():
    points = pd.DataFrame({"image_id": ["1"], "longitude": [7.0], "latitude": [50.0]})
    truth = pd.DataFrame({"image_id": [1, 2, 3, 4], "longitude": 7.0, "latitude": 50.0})
    found = evaluation.evaluate(points, truth)
    assert found.n == 4
    assert float(found.accuracy.value[0]) == 0.25


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"longitude": [7.0], "latitude": [50.0]}, "no column image_id"),
        ({"image_id": ["1"], "latitude": [50.0]}, "no column longitude"),
        ({"image_id": ["1"], "longitude": [7.0], "latitude": [95.0]}, "true_latitude 95.0 is no place"),
        ({"image_id": ["1"], "longitude": [7.0], "latitude": [np.inf]}, "true_latitude inf is no place"),
        ({"image_id": ["1"], "longitude": ["east"], "latitude": [5.0]}, "true_longitude east is no place"),
    ],
)
def test_a_truth_that_is_none_is_an_error(truth, message):
    points = pd.DataFrame({"image_id": ["1"], "longitude": [7.0], "latitude": [50.0]})
    with pytest.raises(BadInputError, match=message):
        evaluation.evaluate(points, pd.DataFrame(truth))


def test_points_of_other_images_are_an_error_and_not_failures():
    points = pd.DataFrame({"longitude": [7.0], "latitude": [50.0]})  # without image_id: row numbers
    truth = pd.DataFrame({"image_id": ["a.jpg"], "longitude": [7.0], "latitude": [50.0]})
    with pytest.raises(BadInputError, match=r"are like '1', those of the truth like 'a\.jpg'"):
        evaluation.evaluate(points, truth)
    assert evaluation.evaluate(points.assign(path="a.jpg"), truth).error_km.tolist() == [0.0]
