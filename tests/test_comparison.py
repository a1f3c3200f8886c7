"""Comparison: the same images for all methods, paired intervals, and a command that says what tells methods apart."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import geo_mvmf
from geo_mvmf import cli, comparison, comparison_report, measures, metrics, resampling, s2, sphere
from geo_mvmf.comparison import compare, per_image
from geo_mvmf.comparison_report import differences, side_by_side
from geo_mvmf.errors import BadInputError, OutputError, UsageError
from geo_mvmf.files import stores
from geo_mvmf.predictions import open_predictions

N = 60
CELLS = np.sort(np.concatenate([s2.face_cells()[:4], s2.children(s2.face_cells()[4:]).ravel()]))  # twelve


def store(path, sharpness, seed, log_kappa=5.0):
    """Predictions of N images about one set of truths: the sharper, the more weight the right component has."""
    generator = np.random.default_rng(1)
    means = sphere.to_directions(generator.uniform(-180, 180, 12), generator.uniform(-60, 60, 12))
    right = generator.integers(0, 12, N)
    single = geo_mvmf.VmfMixture(means, np.full(12, 5.0), np.log(np.eye(12)[right] + 1e-300))
    truth = np.stack(sphere.to_longitude_latitude(single.sample(1, seed=2).reshape(-1, 3)), axis=1)
    logs = np.random.default_rng(seed).normal(size=(N, 12))
    logs[np.arange(N), right] += sharpness
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    mixture = geo_mvmf.VmfMixture(means, np.full(12, log_kappa), logs)
    places = geo_mvmf.estimate(mixture)
    rows = pd.DataFrame(
        {
            "image_id": [f"{i}.jpg" for i in range(N)],
            "status": "ok",
            "message": "",
            "longitude": places[:, 0],
            "latitude": places[:, 1],
            "estimator": "component",
            "true_longitude": truth[:, 0],
            "true_latitude": truth[:, 1],
            "walk": [f"walk {i // 3}" for i in range(N)],
        }
    )
    shared = stores.Components("vmf", means, np.full(12, log_kappa), np.arange(12), CELLS)
    stores.write_store(path, rows=rows, pruned=stores.prune(logs, tail=0.0), components=shared, run={})
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    (folder / "poor").mkdir()
    sharp = store(folder / "predictions.nc", 4.0, 3)
    poor = store(folder / "poor" / "predictions.nc", 0.5, 4)
    points = folder / "points.csv"
    rows = open_predictions(poor).rows.iloc[::-1]  # another system, in another order
    rows[["image_id", "longitude", "latitude", "true_longitude", "true_latitude"]].to_csv(points, index=False)
    return {"sharp": sharp, "poor": poor, "points": points}


@pytest.fixture(scope="module")
def opened(paths):
    points = pd.read_csv(paths["points"])
    return {"sharp": open_predictions(paths["sharp"]), "poor": open_predictions(paths["poor"]), "points": points}


@pytest.fixture(scope="module")
def compared(opened):
    return compare(opened)


@pytest.fixture(autouse=True)
def _few_resamples(request, monkeypatch):
    """What is compared here needs no smooth intervals, but for the tests of the intervals."""
    if "interval" not in request.node.name:
        monkeypatch.setattr(resampling, "RESAMPLES", 200)


def rows_of(found, method):
    table = found.table()
    return table[table["method"] == method].set_index("measure")


def test_figures_are_those_of_evaluate_and_the_better_method_is_told(opened, compared):
    found = compared
    for name, predictions in opened.items():
        figures = geo_mvmf.evaluate(predictions).table().set_index("measure")
        mine = rows_of(found, name)
        assert mine.index.tolist() == figures.index.tolist()
        np.testing.assert_allclose(mine["value"], figures["value"], rtol=1e-12)
    poor = rows_of(found, "poor")
    assert poor.loc["nll_nats", "verdict"] == poor.loc["accuracy_at_2500_km", "verdict"] == "worse"
    assert poor.loc["nll_nats", "difference_low"] > 0 > poor.loc["accuracy_at_2500_km", "difference_high"]
    assert (rows_of(found, "sharp")["verdict"] == "").all()
    assert rows_of(found, "sharp")["difference"].isna().all()
    turned = compare({"poor": opened["poor"], "sharp": opened["sharp"]})
    assert rows_of(turned, "sharp").loc["nll_nats", "verdict"] == "better"


def test_points_in_another_order_are_the_same_images(opened):
    found = compare({"poor": opened["poor"], "points": opened["points"]})
    points = rows_of(found, "points")
    assert set(points["verdict"]) <= {"", "not told apart"}
    np.testing.assert_allclose(points["difference"], 0.0, atol=1e-9)
    assert not points.index.str.contains("nll|coverage").any()
    share = points.loc["accuracy_at_25_km"]  # no image differs: not a width of 0
    assert share["difference_high"] == -share["difference_low"] == metrics.wilson_interval(0, N)[1]


def test_differences_are_of_the_figures_themselves(compared):
    """The numbers of single images are those that every figure is a mean or a median of."""
    found = compared
    for name, evaluation in found.evaluations.items():
        figures = rows_of(found, name)
        single = per_image(evaluation)
        assert set(single) == set(figures.index)
        for measure, values in single.items():
            middle = np.nanmedian if measure in comparison._MEDIANS else np.nanmean
            assert middle(values) == pytest.approx(figures.loc[measure, "value"], rel=1e-9), measure
    first, poor = rows_of(found, "sharp"), rows_of(found, "poor")
    np.testing.assert_allclose(poor["difference"], poor["value"] - first["value"], rtol=1e-9, atol=1e-12)


def test_paired_intervals_are_narrower_than_those_of_strangers():
    """Two methods that err alike: the broken twin draws other images for each and cannot tell them apart."""
    generator = np.random.default_rng(0)
    hard = generator.normal(size=200) * 100.0
    one, two = hard + generator.normal(size=200), hard + 0.5 + generator.normal(size=200)
    clusters = np.arange(200)
    found = resampling.mean_difference(two, one, clusters)
    assert 0.0 < found.low < 0.5 < found.high < 1.0
    twin = [resampling.mean_of_clusters(values, clusters, seed=seed) for seed, values in enumerate((two, one))]
    assert twin[0].low < twin[1].value < twin[0].high
    medians = resampling.difference_of_medians(two, one, clusters)
    assert medians.value == pytest.approx(np.median(two) - np.median(one))
    assert medians.high - medians.low < 0.2 * (resampling.median_of_clusters(two, clusters).high - twin[0].low)


@pytest.mark.parametrize("of", [resampling.mean_difference, resampling.difference_of_medians])
def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says(of):
    generator, inside = np.random.default_rng(5), 0
    for seed in range(30):
        clusters = np.repeat(np.arange(40), 3)
        together = np.repeat(generator.normal(size=40), 3)  # what a cluster shares, and methods do not
        shared = generator.normal(size=120)
        found = of(shared + together + 0.3, shared, clusters, seed=seed)
        inside += found.low <= 0.3 <= found.high
    assert inside >= 24  # of 30; at 95 % it is fewer once in 1000


def told_apart(low, high):
    return not low <= 0.0 <= high


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 8, 12, 40])
def test_equal_methods_of_few_clusters_are_seldom_told_apart(k, monkeypatch, plain_percentiles):
    """The broken twin draws the clusters again as if the draws of few differed as much as those of many."""
    monkeypatch.setattr(resampling, "RESAMPLES", 500)
    found, twin, times = 0, 0, 150
    clusters = np.repeat(np.arange(k), 4)
    for seed in range(times):
        generator = np.random.default_rng([k, seed])
        difference = generator.normal(size=k)[clusters] + generator.normal(size=clusters.size)
        estimate = resampling.mean_difference(difference, np.zeros_like(difference), clusters)
        assert np.isnan(estimate.low) == (k < resampling.LEAST_CLUSTERS)
        found += told_apart(estimate.low, estimate.high) and not np.isnan(estimate.low)
        twin += told_apart(*plain_percentiles(difference.reshape(k, 4).mean(axis=1), resamples=500))
    assert found <= 15  # of 150; of 5 % it is more once in 200
    assert twin > 15 or k in (8, 40)  # at 8 clusters it is too sure too, once in ten


def test_few_clusters_and_few_images_have_no_verdict(opened):
    points = opened["points"].assign(walk=[f"walk {i % 7}" for i in range(N)])
    for table, options in ((points, {"cluster_by": "walk"}), (points.iloc[:7], {})):
        other = table.drop(columns="walk").assign(latitude=-table["true_latitude"])
        found = compare({"points": table, "other": other}, **options)
        rows = rows_of(found, "other")
        assert set(rows["verdict"]) == {comparison.TOO_FEW}
        assert rows["difference"].notna().all()
        assert rows[["difference_low", "difference_high"]].isna().all(axis=None)
        assert rows["low"].isna().all() == bool(options)  # of images alone a figure has its interval
        assert set(differences(found)["95 % interval"]) == {"unknown"}
        assert not options or not side_by_side(found)["other"].str.contains(" to ").any()


def test_groups_are_compared_by_themselves(opened):
    """Each as if it were all there is; groups of too few walks are told."""
    land = np.repeat(["Mali", "Peru"], [45, 15])  # 15 and 5 walks of three images
    points = opened["points"].assign(land=land, walk=[f"walk {i // 3}" for i in range(N)])
    other = shifted(points).drop(columns="land").iloc[::-1]
    found = compare({"points": points, "other": other}, by="land", cluster_by="walk")
    assert found.small_groups == {"Peru": 5}
    assert comparison_report.of_small_groups(found).endswith(
        "fewer than 8 clusters, of which nothing can be told: Peru (5)."
    )
    assert found.table()["group"].unique().tolist() == ["all", "Mali", "Peru"]
    alone = compare({"points": points[land == "Mali"], "other": other.iloc[15:]}, cluster_by="walk").table()
    mine = found.table().query("group == 'Mali'").assign(group="all").reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone)
    few = found.table().query("method == 'other' and group == 'Peru'")
    assert set(few["verdict"]) == {comparison.TOO_FEW}
    assert few[["low", "high", "difference_low", "difference_high"]].isna().all(axis=None)
    assert few["difference"].notna().all()
    shown = differences(found)
    assert shown["Group"].drop_duplicates().tolist() == ["all", "Mali", "Peru"]
    assert side_by_side(found)["Measure"].is_unique  # of all images


def test_the_command_compares_groups(opened, tmp_path):
    opened["points"].assign(all_same=1, land="all").to_csv(tmp_path / "a.csv", index=False)
    shifted(opened["points"].assign(walk="")).to_csv(tmp_path / "b.csv", index=False)
    files, table = (tmp_path / "a.csv", tmp_path / "b.csv"), tmp_path / "t.csv"
    result = run(*files, "--by", "all_same", "--table", table)
    assert result.exit_code == 0, result.output
    assert f"1 groups of all_same: in {table}" in result.output
    assert pd.read_csv(table)["group"].unique().tolist() == ["all", "1"]
    refused = run(*files, "--by", "land")
    assert refused.exit_code == 3
    assert "cannot group by 'land': 'all' in it stands for all images here; rename it" in refused.stderr


def test_names_are_shown_to_the_letter(opened, tmp_path, monkeypatch):
    """Formulas, hidden labels, columns of the page: all of them are names like others."""
    names, legends = ["cost_$5_$10", "_other", "To compare", "Measure", "method", "<b>$\\foo$"], []

    def keep(figure):
        figure.canvas.draw()
        legends.append([text.get_text() for text in figure.axes[0].get_legend().get_texts()])
        assert not any(text.get_parse_math() for text in figure.axes[0].get_legend().get_texts()[: len(names)])
        return b"\x89PNG" + bytes(20)

    monkeypatch.setattr(comparison_report, "png", keep)
    found = compare(dict.fromkeys(names, opened["points"]))
    comparison_report.write_comparison_report(tmp_path / "page.html", found)
    assert legends == [[*names, "chance"]]
    shown = side_by_side(found)
    assert shown.columns.tolist() == ["Measure", *names, "To compare"]
    assert (shown.iloc[:, 1] == shown.iloc[:, 3]).all()  # all are of the same points
    assert (shown.iloc[:, 1] == shown.iloc[:, 4]).all()
    assert "&lt;b&gt;$\\foo$" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("name", ["a\x00", "\ud800", " "])
def test_names_that_cannot_be_shown_are_refused(opened, name):
    with pytest.raises(UsageError, match="give a name of visible characters"):
        compare({name: opened["points"], "other": opened["points"]})


def test_methods_without_names_are_refused(opened):
    with pytest.raises(UsageError, match="a dictionary from names to predictions is wanted"):
        compare([opened["points"], opened["points"]])


def test_a_page_that_fails_leaves_no_table(paths, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OutputError("page: no space")

    monkeypatch.setattr(comparison_report, "write_comparison_report", fails)
    result = run(*[paths["points"]] * 2, "--names", "a,b", "--out", tmp_path / "p.html", "--table", tmp_path / "t.csv")
    assert result.exit_code == 5
    assert not (tmp_path / "t.csv").exists()


def shifted(points):
    """Another method: some images better, some worse."""
    moved = np.random.default_rng(8).normal(size=N) * 5.0
    return points.drop(columns="walk").assign(latitude=np.clip(points["latitude"] + moved, -90, 90))


def test_clusters_make_intervals_wider_and_are_those_of_the_first_method(opened):
    points = opened["points"].assign(walk=[f"walk {i // 3}" for i in range(N)])
    plain, clustered, blocks = (
        rows_of(compare({"points": points, "other": shifted(points)}, **options), "other").loc["geo_score"]
        for options in ({}, {"cluster_by": "walk"}, {"block_level": 2})
    )
    assert plain["difference"] == clustered["difference"] == blocks["difference"]
    assert len({row["difference_low"] for row in (plain, clustered, blocks)}) == 3


def test_images_without_a_prediction_count_as_wrong_in_differences(opened):
    points = opened["points"].copy()
    points.loc[points.index[:30], ["longitude", "latitude"]] = np.nan
    found = rows_of(compare({"points": opened["points"], "half": points}), "half")
    assert found.loc["accuracy_at_2500_km", "difference"] < 0
    assert found.loc["mean_error_km", "difference"] == pytest.approx(0.0)  # of the images that both predict
    none = points.assign(longitude=np.nan, latitude=np.nan)
    found = rows_of(compare({"points": opened["points"], "none": none}), "none")
    assert found.loc["median_error_km", ["difference", "verdict"]].tolist() == [np.inf, "worse"]


def test_other_images_and_other_truths_are_refused(opened):
    points = opened["points"]
    with pytest.raises(BadInputError, match=r"different test images: 3 only of the first, like '59.jpg'; 0 only of"):
        compare({"all": points, "some": points.iloc[3:]})
    moved = points.assign(true_latitude=np.where(points["image_id"] == "7.jpg", 0.0, points["true_latitude"]))
    with pytest.raises(BadInputError, match=r"different truths for 1 of 60 images: that of '7.jpg' is .* km apart"):
        compare({"one": points, "two": moved})
    twice = pd.concat([points, points.iloc[:1]])
    with pytest.raises(BadInputError, match=r"'two' names 1 images more than once, like '59.jpg'"):
        compare({"one": points, "two": twice})
    with pytest.raises(BadInputError, match=r"two: .*true_longitude"):
        compare({"one": points, "two": points.drop(columns=["true_longitude"])})
    with pytest.raises(UsageError, match=r"1 method \(one\): two or more"):
        compare({"one": points})


def test_one_truth_for_all_takes_the_place_of_their_own(opened):
    points = opened["points"]
    truth = points[["image_id"]].assign(longitude=points["longitude"], latitude=points["latitude"])
    found = compare({"points": points.drop(columns=["true_longitude", "true_latitude"]), "s": opened["sharp"]}, truth)
    assert rows_of(found, "points").loc["accuracy_at_1_km", "value"] == 1.0


def test_the_words_of_the_page(compared):
    found = compared
    shown = side_by_side(found)
    assert shown.columns.tolist() == ["Measure", "sharp", "poor", "points", "To compare"]
    assert len(shown) == len(measures.tidy(found.evaluations["sharp"]))
    told = differences(found)
    assert set(told["Method"]) == {"poor", "points"}
    assert told["Difference"].str.contains(r"^[+-]\d").all()


def run(*arguments):
    return CliRunner().invoke(cli.main, ["compare", *map(str, arguments)])


@pytest.mark.hard
def test_the_command_writes_a_page_and_a_table(paths, tmp_path):
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    result = run(*paths.values(), "--names", "sharp, poor,points", "--out", page, "--table", table, "--block-level", 1)
    assert result.exit_code == 0, result.output
    assert "Differences to sharp" in result.output
    figures = pd.read_csv(table)
    assert figures["method"].unique().tolist() == ["sharp", "poor", "points"]
    text = page.read_text()
    assert text.count("data:image/png") == 2
    assert "poor, points against sharp" in text
    assert "S2 cells of level 1" in text


def test_methods_are_named_by_what_tells_their_files_apart(paths):
    result = run(paths["sharp"], paths["poor"])
    assert result.exit_code == 0, result.output
    assert "poor/predictions" in result.output


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--names", "a"], 2, "1 names for 2 PREDICTIONS"),
        (["--names", "a,a"], 2, "two PREDICTIONS have the name 'a'"),
        (["--out", "y.csv"], 2, "--out y.csv: the suffix is '.csv'"),
        (["--table", "y.html"], 2, "--table y.html: the suffix is '.html'"),
        (["--cluster-by", "nope"], 3, "'nope'"),
        (["--cluster-by", "walk", "--block-level", "3"], 2, "choose one"),
    ],
)
def test_mistakes_are_said(paths, options, code, message):
    result = run(paths["sharp"], paths["points"], *options)
    assert result.exit_code == code
    assert message in result.stderr


def test_one_file_alone_is_refused(paths):
    result = run(paths["sharp"])
    assert result.exit_code == 2
    assert "two or more are needed" in result.stderr


def test_warnings_name_the_method():
    longitude, latitude = np.random.default_rng(0).uniform([[5.0], [45.0]], [[15.0], [55.0]], (2, 30))
    truth = {"image_id": range(30), "true_longitude": longitude, "true_latitude": latitude}
    right = pd.DataFrame({"longitude": longitude, "latitude": latitude, **truth})
    turned = right.rename(columns={"longitude": "latitude", "latitude": "longitude"})
    with pytest.warns(UserWarning, match="turned") as caught:
        compare({"right": right, "turned": turned, "turned too": turned})
    assert [str(each.message).split(" estimates")[0] for each in caught] == [
        "turned: half of 30",
        "turned too: half of 30",
    ]
