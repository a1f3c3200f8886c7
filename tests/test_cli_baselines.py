"""The command `baselines`: two files of methods without training, which `compare` puts beside a bundle's own."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from geo_mvmf import cli
from geo_mvmf.predictions import open_predictions


@pytest.fixture
def tables(tmp_path, make_album):
    """Twelve training images, five others of which one is missing; each with its place."""
    generator, found = np.random.default_rng(0), []
    for name, first, n in (("known", 0, 12), ("unseen", 20, 5)):
        names = make_album(tmp_path / name, n, first)
        places = {"longitude": generator.uniform(-180, 180, n), "latitude": generator.uniform(-60, 60, n)}
        pd.DataFrame({"path": names, **places}).to_csv(tmp_path / name / "table.csv", index=False)
        found.append(tmp_path / name / "table.csv")
    (tmp_path / "unseen" / "image_022.png").unlink()
    return found


def run(*arguments):
    return CliRunner().invoke(cli.main, list(map(str, arguments)))


@pytest.mark.hard
def test_two_files_are_written_and_compared(tables, bundle_path, tmp_path):
    known, unseen = tables
    out = tmp_path / "baselines"
    asked = ["baselines", unseen, "--bundle", bundle_path, "--training", known, "--out", out, "--k", 3]
    result = run(*asked)
    assert result.exit_code == 0, result.output
    assert "4 of 5 images located among 12 training images" in result.output
    places = pd.read_csv(known)
    found = open_predictions(out / "neighbours.nc")
    assert found.rows["status"].tolist() == ["ok", "ok", "missing", "ok", "ok"]
    for x in found.rows["longitude"].dropna():  # the place of one of them
        assert np.abs(places["longitude"] - x).min() < 1e-6
    assert found.run["k"] == 3
    own = tmp_path / "own.nc"
    assert run("predict", unseen, "--bundle", bundle_path, "--out", own).exit_code == 0
    result = run("compare", own, out / "neighbours.nc", out / "training.nc")
    assert result.exit_code == 0, result.output
    assert "Differences to own" in result.output
    assert "too few clusters to tell" in result.output  # of 5 images
    assert run(*asked).exit_code == 5  # the files exist


def test_too_few_training_images_are_said(tables, bundle_path, tmp_path):
    known, unseen = tables
    result = run("baselines", unseen, "--bundle", bundle_path, "--training", known, "--out", tmp_path / "a", "--k", 12)
    assert result.exit_code == 3
    assert "12 of 12 images can be read and have a place; more than k 12 needed" in result.stderr


def test_images_that_are_in_both_tables_are_counted(tables, bundle_path, tmp_path):
    """By what is in them: a copy under another name is the same image."""
    known, unseen = tables
    assert run_of_two(known, unseen, bundle_path, tmp_path / "apart").stderr.count("are training images, too") == 0
    (unseen.parent / "image_022.png").write_bytes((known.parent / "image_003.png").read_bytes())
    result = run_of_two(known, unseen, bundle_path, tmp_path / "shared")
    assert "1 of 5 images of" in result.stderr
    assert "image_022.png" in result.stderr


def run_of_two(known, unseen, bundle, out):
    result = run("baselines", unseen, "--bundle", bundle, "--training", known, "--out", out, "--k", 3)
    assert result.exit_code == 0, result.output
    return result
