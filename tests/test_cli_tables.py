"""What commands say of image tables as a whole, and the tables that `table` writes."""

import pandas as pd
import pytest
from click.testing import CliRunner

from geo_mvmf import cli
from geo_mvmf.inputs.tables import read_image_table


def run(*arguments):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def album(tmp_path, make_album):
    """Four pictures with their places, in a folder of their own."""
    names = make_album(tmp_path / "album", 4)
    places = {"longitude": [107.0, 116.0, 151.0, 8.0], "latitude": [51.0, 48.0, -33.0, 40.0]}
    pd.DataFrame({"path": names, **places}).to_csv(tmp_path / "album" / "t.csv", index=False)
    return tmp_path / "album"


@pytest.fixture
def swapped(album):
    """The same with the names of its columns exchanged."""
    table = pd.read_csv(album / "t.csv").rename(columns={"longitude": "latitude", "latitude": "longitude"})
    table.to_csv(album / "swapped.csv", index=False)
    return album / "swapped.csv"


# --- longitude and latitude swapped ---------------------------------------------------------------------------------


def test_a_swapped_table_is_told_once_by_commands_that_need_no_places(swapped, bundle_path, tmp_path):
    model = ("--bundle", bundle_path)
    backbone = ("--backbone", "chip_resnet10", "--device", "cpu")
    for command in (
        ("table", swapped),
        ("predict", swapped, *model, "--out", tmp_path / "a.nc"),
        ("features", swapped, "--cache", tmp_path / "cache", *backbone),
        ("baselines", swapped, *model, "--training", swapped.with_name("t.csv"), "--out", tmp_path / "b", "--k", 2),
    ):
        done = run(*command)
        assert done.exit_code == 0, done.output
        assert done.stderr.count(f"warning: {swapped}: 3 of 4 rows have no place that can be used") == 1
        assert "probably the whole file has longitude and latitude swapped" in done.stderr


def test_training_images_of_baselines_that_are_swapped_are_refused(swapped, bundle_path, tmp_path):
    model = ("--bundle", bundle_path)
    refused = run("baselines", swapped.with_name("t.csv"), *model, "--training", swapped, "--out", tmp_path / "b")
    assert refused.exit_code == 3
    assert "exchange the two columns" in refused.stderr


def test_a_table_says_why_its_first_rows_cannot_be_used(album):
    rows = ["image_000.png,7,95", "no.png,7,50", "../up.png,7,50", "image_001.png,,", "image_002.png,7,x"]
    (album / "bad.csv").write_text("\n".join(["path,lon,lat", *rows]))
    lines = run("table", album / "bad.csv").stdout.splitlines()
    at = lines.index("why rows cannot be used is in the column message of what --out writes; the first 3:")
    for line, words in zip(lines[at + 1 :], ("row 1: latitude 95.0 is not in", "no such file", "outside"), strict=True):
        assert words in line
    assert "why rows" not in run("table", album / "t.csv").stdout


# --- tables that are written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gpkg", ".csv"])
def test_a_table_that_is_written_names_the_same_images(album, bundle_path, tmp_path, suffix):
    """Paths were those of the old folder, so all images of the new table were missing."""
    above, beside = tmp_path / f"above{suffix}", tmp_path / "elsewhere" / f"beside{suffix}"
    beside.parent.mkdir()
    assert "outside" not in run("table", album / "t.csv", "--out", above).stdout
    assert "4 rows; status: 4 ok" in run("table", above).stdout
    assert read_image_table(above)["path"].tolist() == [f"album/image_00{i}.png" for i in range(4)]
    told = run("table", album / "t.csv", "--out", beside).stdout
    assert told.endswith(f"not all images lie in its folder, so its paths are absolute: with it, give --root {album}\n")
    root = ("--root", album)
    assert "4 refused" in run("table", beside).stdout
    backbone = ("--backbone", "chip_resnet10", "--device", "cpu", "--cache", tmp_path / "cache")
    known = ("--training", beside, "--training-root", album, "--bundle", bundle_path, "--k", 2)
    for command, words in (
        (("table", beside, *root), "4 rows; status: 4 ok"),
        (("predict", beside, "--bundle", bundle_path, "--out", tmp_path / "a.nc", *root), "status: 4 ok"),
        (("features", beside, *backbone, *root), "4 of 4 images have features"),
        (("partition", beside, "--out", tmp_path / "p.gpkg", "--num-cells", 6, *root), "6 cells of 4 images"),
        (("baselines", above, *known, "--out", tmp_path / "b"), "among 4 training images"),
    ):
        assert words in run(*command).stdout


def test_a_table_in_a_folder_of_some_of_its_images_can_be_read_with_the_root_it_advises(album, tmp_path):
    """Images in its folder were relative to it, so that with this root they were missing."""
    inner, new = album / "inner", album / "inner" / "new.csv"
    inner.mkdir()
    (album / "image_000.png").rename(inner / "a.png")
    (album / "t.csv").write_text("path\ninner/a.png\nimage_001.png\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for source, options, count in ((album / "t.csv", (), 2), (album, ("--root", elsewhere), 4)):
        told = run("table", source, *options, "--out", new, "--overwrite").stdout
        root = told.splitlines()[-1].partition(" give --root ")[2]
        assert f"{count} rows; status: {count} ok" in run("table", new, "--root", root).stdout


def test_rows_that_are_refused_keep_their_paths(album, tmp_path):
    (album / "t.csv").write_text('path\nimage_000.png\n../x.png\nno.png\n""\n')
    run("table", album / "t.csv", "--out", tmp_path / "new.csv")
    table = pd.read_csv(tmp_path / "new.csv", keep_default_na=False)
    assert table["path"].tolist() == ["album/image_000.png", "../x.png", "album/no.png", ""]
    assert table["image_id"].tolist()[0] == "image_000.png"
