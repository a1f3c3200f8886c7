"""The command `evaluate` on points of any system: figures, page, and what it refuses."""

import geopandas as gpd
import pandas as pd
import pytest
import shapely
from click.testing import CliRunner

from geo_mvmf import cli
from geo_mvmf.commands import truths
from geo_mvmf.errors import AmbiguousInputError


@pytest.fixture
def points(tmp_path):
    path = tmp_path / "points.csv"
    rows = ["7.5,50,8,51,Europe,a", "-70,-30,-71,-33,South America,a", ",,2,3,Africa,b", "5,6,,,Africa,b"]
    path.write_text("longitude,latitude,true_longitude,true_latitude,continent,user\n" + "\n".join(rows) + "\n")
    return path


def run(*arguments):
    return CliRunner().invoke(cli.main, ["evaluate", *map(str, arguments)])


def test_points_have_figures_and_a_page(points, tmp_path):
    out = tmp_path / "figures.csv"
    result = run(points, "--by", "continent", "--cluster-by", "user", "--out", out)
    assert result.exit_code == 0, result.output
    figures = pd.read_csv(out).set_index(["group", "measure"])
    assert figures.loc[("all", "accuracy_at_2500_km"), ["value", "n", "n_nan"]].tolist() == [pytest.approx(2 / 3), 3, 1]
    assert figures.loc[("Africa", "accuracy_at_2500_km"), "value"] == 0.0  # a missing point is wrong, not absent
    assert not figures.index.get_level_values("measure").str.contains("coverage").any()
    page = tmp_path / "page.html"
    assert run(points, "--out", page).exit_code == 0
    text = page.read_text()
    assert text.count("data:image/png") == 1
    assert "3 images have a known place and are compared; 1 have none." in text
    assert "Without a prediction" in text


def test_an_error_of_the_truth_holds_the_name_of_its_option_throughout(tmp_path):
    """The option of the error that was caught was changed, and its arguments were not."""
    (tmp_path / "t.csv").write_text("image_id,x,y\na,1,2\n")
    with pytest.raises(AmbiguousInputError) as caught:
        truths.read(tmp_path / "t.csv", None, None)
    assert caught.value.option == caught.value.args[1] == "truth_crs"


def test_a_truth_in_metres_needs_the_crs_of_its_option(points, tmp_path):
    truth, layers = tmp_path / "truth.csv", tmp_path / "truth.gpkg"
    places = pd.read_csv(points).assign(image_id=["1", "2", "3", "4"]).dropna(subset="true_longitude")
    frame = gpd.GeoDataFrame(
        places[["image_id"]], geometry=gpd.points_from_xy(places.true_longitude, places.true_latitude, crs="EPSG:4326")
    ).to_crs("EPSG:3857")
    places[["image_id"]].assign(x=frame.geometry.x, y=frame.geometry.y).to_csv(truth, index=False)
    for name in ("first", "second"):
        frame.to_file(layers, layer=name, engine="pyogrio")
    unknown = f"{truth}: columns 'x' and 'y': the CRS is unknown; set it to EPSG:n or OGC:CRS84 (--truth-crs)\n"
    several = f"{layers} has 2 layers ('first', 'second'); choose one by its name (--truth-layer)\n"
    compare = ["compare", points, points, "--names", "a,b", "--truth"]
    for source, told, option in ((truth, unknown, "--truth-crs=EPSG:3857"), (layers, several, "--truth-layer=first")):
        refused = run(points, source)
        assert (refused.exit_code, refused.stderr) == (3, f"geo-mvmf: {told}")
        assert CliRunner().invoke(cli.main, [str(each) for each in (*compare, source)]).stderr.endswith(told)
        assert run(points, option).exit_code == 2  # there is no truth
        assert CliRunner().invoke(cli.main, [str(each) for each in (*compare, source, option)]).exit_code == 0
        done = run(points, source, option)
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout == run(points).stdout  # with the same truth beside the points


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--estimators", "mode"], 2, "need densities"),
        (["--by", "nope"], 3, "cannot group by 'nope'"),
        (["--cluster-by", "user", "--block-level", "3"], 2, "choose one"),
        (["--out", "y.pdf"], 2, "the suffix is '.pdf'"),
    ],
)
def test_mistakes_are_said(points, options, code, message):
    result = run(points, *options)
    assert result.exit_code == code
    assert message in result.stderr


def test_a_point_that_is_no_place_is_refused_with_its_row(points):
    points.write_text(points.read_text().replace("-70,-30", "-70,-130"))
    result = run(points)
    assert result.exit_code == 3
    assert "points.csv: row 2: latitude -130.0" in result.stderr


def test_of_a_geopackage_the_only_layer_of_points_is_read_and_others_are_named(points, tmp_path):
    frame, out = pd.read_csv(points).dropna(), tmp_path / "points.gpkg"
    ours = gpd.GeoDataFrame(frame, geometry=gpd.points_from_xy(frame.longitude, frame.latitude), crs="EPSG:4326")
    ours.to_file(out, layer="points", engine="pyogrio")
    ours.set_geometry(shapely.buffer(ours.geometry, 1.0)).to_file(out, layer="regions", engine="pyogrio")
    result = run(out)
    assert (result.exit_code, result.stderr) == (0, "")  # the normal case: a layer of predict has both
    ours.iloc[:1].to_file(out, layer="best", engine="pyogrio")
    refused = run(out)
    assert refused.exit_code == 3
    several = f"{out} has 3 layers ('points', 'regions', 'best'); "
    assert f"{several}choose one by its name (--layer)\n" in refused.stderr
    compared, parted = ["compare", points, out, "--names", "a,b"], ["partition", out, "--out", tmp_path / "x.gpkg"]
    by_file = ["partition", points, "--method", "file", "--file", out, "--out", tmp_path / "x.gpkg"]
    for arguments in (compared, parted, by_file):
        refused = CliRunner().invoke(cli.main, [str(each) for each in arguments])
        assert refused.exit_code == 3
        # these have no --layer, or none of this file
        assert f"{several}give a file that holds the right one alone\n" in refused.stderr
    named = run(out, "--layer", "best")
    assert (named.exit_code, named.stderr) == (0, "")
    assert run(points, "--layer", "best").exit_code == 3
