"""What commands say of image tables as a whole, and the tables that `table` writes."""

import pandas as pd
import pytest
from click.testing import CliRunner

from geo_mvmf import cli


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
