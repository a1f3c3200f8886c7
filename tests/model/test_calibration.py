"""Calibration: a model of its own truths stays as it is, a sharpened one becomes true, and intervals count groups."""

import dataclasses
import math

import geopandas
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy import special

import geo_mvmf
from geo_mvmf import cli, s2, sphere, vmf
from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.tables import read_image_table
from geo_mvmf.model import calibration, heads, scaling
from geo_mvmf.model.bundle import load_bundle, save_bundle
from geo_mvmf.model.bundle_format import read_header
from geo_mvmf.model.untrained import untrained_bundle

N, C = 800, 40


@pytest.fixture(scope="module")
def simulated():
    """Truths drawn from known mixtures."""
    generator = np.random.default_rng(5)
    means = sphere.random_directions(C, generator)
    concentrations = generator.uniform(2.0, 8.0, C)
    logs = generator.normal(size=(N, C)) * 2.5
    mixture = geo_mvmf.VmfMixture(means, concentrations, logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))
    return mixture, mixture.sample(1, seed=11).reshape(-1, 3)


def fitted(mixture, places, temperature=1.0, shift=0.0, groups=None):
    """Fit a twin whose logits are divided by a temperature and whose concentrations are shifted."""
    logits = (mixture.log_mixing_weights / temperature).astype(np.float32)
    densities = scaling.VmfDensities(mixture.mean_directions, mixture.log_concentrations + shift, places)
    return scaling.fit(logits, densities, np.arange(len(logits)) if groups is None else groups)


def ranks(mixture, places, scaled=None):
    """Searched probability of the truths, as the share of 99 draws from their own densities that are denser."""
    logs, log_kappa = mixture.log_mixing_weights, mixture.log_concentrations
    if scaled is not None:
        logs, log_kappa = logs / math.exp(scaled.log_temperature), log_kappa + scaled.shift
        logs = logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
    draws = geo_mvmf.VmfMixture(mixture.mean_directions, log_kappa, logs).sample(99, seed=7)  # (N, 99, 3)
    height = 1.0 - np.concatenate([places[:, None], draws], axis=1) @ mixture.mean_directions.T  # (N, 100, C)
    density = special.logsumexp(logs[:, None] + vmf.log_normaliser(log_kappa) - np.exp(log_kappa) * height, axis=2)
    return (density[:, 1:] > density[:, :1]).mean(axis=1)


def test_derivatives_are_those_of_finite_differences(simulated):
    mixture, places = simulated
    logits, step = mixture.log_mixing_weights.astype(np.float32), 1e-5
    cells = scaling.CellDensities(np.sort(s2.face_cells()), places)
    wide = scaling.VmfDensities(mixture.mean_directions, mixture.log_concentrations - 4.0, places)
    for densities, scores in ((wide, logits), (cells, logits[:, :6])):
        theta, rows = np.array([0.2, -0.3]), np.arange(30)
        found = scaling.losses(scores, densities, rows, theta)
        for axis in range(1 + densities.has_shift):
            offset = np.eye(2)[axis] * step
            up, down = (scaling.losses(scores, densities, rows, theta + sign * offset) for sign in (1.0, -1.0))
            np.testing.assert_allclose((up.value - down.value) / (2 * step), found.gradient[:, axis], atol=1e-7)
            np.testing.assert_allclose((up.gradient - down.gradient) / (2 * step), found.hessian[:, axis], atol=1e-7)


def test_the_loss_is_the_mixture_s(simulated):
    mixture, places = simulated
    densities = scaling.VmfDensities(mixture.mean_directions, mixture.log_concentrations, places)
    rows = np.arange(50)
    found = scaling.losses(mixture.log_mixing_weights.astype(np.float32), densities, rows, np.zeros(2))
    expected = -np.diagonal(mixture[:50].log_density(places[:50]))
    np.testing.assert_allclose(found.value, expected, atol=1e-5)


def test_a_model_of_its_own_truths_stays_as_it_is(simulated):
    scaled = fitted(*simulated)
    standard_error = scaled.half_width / 1.96
    assert (np.abs([scaled.log_temperature, scaled.shift]) < 4 * standard_error).all()
    assert (standard_error < 0.1).all()


@pytest.mark.parametrize(("temperature", "shift"), [(0.6, 0.9), (1.7, -1.2)])
def test_a_twin_s_temperature_and_shift_are_found(simulated, temperature, shift):
    scaled = fitted(*simulated, temperature, shift)
    standard_error = scaled.half_width / 1.96
    wrong = np.array([scaled.log_temperature + math.log(temperature), scaled.shift + shift])
    assert (np.abs(wrong) < 4 * standard_error).all()
    assert scaled.after.mean() < scaled.before.mean()


def test_regions_cover_after_calibration_and_not_before(simulated):
    """The sharpened twin's coverage is outside the 99 % bounds until it is calibrated."""
    mixture, places = simulated
    sharp_logs = mixture.log_mixing_weights / 0.6
    sharp = geo_mvmf.VmfMixture(
        mixture.mean_directions,
        mixture.log_concentrations + 0.9,
        sharp_logs - np.logaddexp.reduce(sharp_logs, axis=1, keepdims=True),
    )
    before = ranks(sharp, places)
    after = ranks(sharp, places, fitted(mixture, places, 0.6, 0.9))
    for level in (0.5, 0.8, 0.9, 0.95):
        bound = 2.576 * math.sqrt(level * (1 - level) / N)
        assert abs((after <= level).mean() - level) < bound
        assert abs((before <= level).mean() - level) > bound


def test_truths_on_the_mean_directions_do_not_let_the_concentrations_grow_for_ever(simulated):
    mixture, _ = simulated
    scaled = fitted(mixture[:40], mixture.mean_directions[:40])
    assert 2.0 < scaled.shift < 8.0
    assert np.isfinite(scaled.half_width).all()


def test_cells_have_a_temperature_and_no_shift(simulated):
    generator = np.random.default_rng(0)
    cells = np.sort(s2.face_cells())
    logits = generator.normal(size=(N, 6)).astype(np.float32) * 2
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cell = (generator.random((N, 1)) > np.cumsum(weights, axis=1)).sum(axis=1)
    places = s2.centre(cells[cell])
    scaled = scaling.fit(logits * 2.0, scaling.CellDensities(cells, places), np.arange(N))
    assert scaled.shift == 0.0
    assert abs(scaled.log_temperature - math.log(2.0)) < 4 * scaled.half_width[0] / 1.96
    assert scaled.half_width[1] == 0.0


def test_intervals_count_groups_and_not_images(simulated):
    """Each image ten times says nothing new; the broken twin takes the copies for images of their own."""
    mixture, places = simulated
    few, rows = mixture[:100], np.repeat(np.arange(100), 10)
    once = fitted(few, places[:100], groups=np.arange(100))
    repeated = fitted(few[rows], places[rows], groups=rows)
    np.testing.assert_allclose(repeated.half_width, once.half_width, rtol=0.02)
    naive = fitted(few[rows], places[rows], groups=np.arange(1000))
    np.testing.assert_allclose(naive.half_width, once.half_width / math.sqrt(10), rtol=0.1)


def test_the_loss_after_is_of_groups_that_were_left_out(simulated):
    """A scaling fitted on noise does not look better than none; fitted and judged on the same images it would."""
    mixture, _ = simulated
    places = sphere.random_directions(12, np.random.default_rng(3))
    scaled = fitted(mixture[:12], places)
    densities = scaling.VmfDensities(mixture.mean_directions, mixture.log_concentrations, places)
    logits = mixture.log_mixing_weights[:12].astype(np.float32)
    theta = np.array([scaled.log_temperature, scaled.shift])
    own = scaling.losses(logits, densities, np.arange(12), theta).value
    assert own.mean() < scaled.after.mean()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A bundle that is too sure of itself, pictures, and places drawn from the bundle that is right."""
    folder = tmp_path_factory.mktemp("calibration")
    right = untrained_bundle()
    with torch.no_grad():
        right.head.weight.mul_(60.0)
    names = [f"{i:03d}.png" for i in range(160)]
    pixels = np.random.default_rng(0).integers(0, 256, (len(names), 4, 4, 3), np.uint8)
    for name, small in zip(names, pixels, strict=True):
        Image.fromarray(small).resize((32, 32), Image.Resampling.BOX).save(folder / name)
    table = read_image_table(pd.DataFrame({"path": names}), root=folder)
    from geo_mvmf.inputs.images import read_images

    chosen = np.stack(list(read_images([folder / name for name in names], right.spec)))
    places = right.mixture(right.predict(chosen)[0]).sample(1, seed=4).reshape(-1, 3)
    longitude, latitude = sphere.to_longitude_latitude(places)
    lines = ["path,longitude,latitude,walk"]
    lines += [f"{name},{x:.6f},{y:.6f},w{i % 20}" for i, (name, x, y) in enumerate(zip(names, longitude, latitude))]  # noqa: B905 (equal by construction)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "truth.csv").write_text("\n".join([*lines, "broken.png,1,2,w0", "000.png,,,w1"]) + "\n")
    sharp = untrained_bundle()
    with torch.no_grad():
        sharp.head.weight.mul_(60.0 * 2.0)
        sharp.head.log_concentrations.add_(0.7)
    save_bundle(sharp, folder / "sharp.safetensors")
    assert isinstance(table, geopandas.GeoDataFrame)
    return folder, right


def used(folder):
    """The table without its last row, which is an image once more and is told to be left out."""
    return read_image_table(pd.read_csv(folder / "truth.csv")[:161], root=folder)


def test_calibrate_folds_the_scaling_into_a_bundle_that_any_reader_reads(house, tmp_path):
    folder, _ = house
    sharp = load_bundle(folder / "sharp.safetensors", device="cpu")
    weight = sharp.head.weight.detach().clone()
    with pytest.warns(UserWarning, match=r"truth.csv: 161 of 162 rows are used: 1 duplicate_id; the first .* row 162"):
        better = geo_mvmf.calibrate(sharp, read_image_table(folder / "truth.csv"), group_by="walk")
    about = better.metadata["training"]["calibration"]
    for name, true in (("temperature", 2.0), ("log_concentration_shift", -0.7)):
        low, high = about[f"{name}_interval"]
        assert abs(about[name] - true) < high - low  # four standard errors
    assert (about["num_images"], about["num_groups"], about["num_failed"]) == (160, 20, 1)
    assert about["nll_after"] < about["nll_before"]
    assert about["bundle_sha256"] == sharp.digest
    assert torch.equal(sharp.head.weight, weight)  # the bundle that was given is as it was
    torch.testing.assert_close(better.head.weight * about["temperature"], weight)
    save_bundle(better, tmp_path / "better.safetensors")
    assert read_header(tmp_path / "better.safetensors")["training"]["calibration"] == about
    loaded = load_bundle(tmp_path / "better.safetensors", device="cpu")
    np.testing.assert_array_equal(loaded.log_concentrations, better.log_concentrations)
    again = geo_mvmf.calibrate(sharp, used(folder), group_by="walk", batch_size=7, workers=0)
    assert again.metadata["training"]["calibration"]["temperature"] == pytest.approx(about["temperature"], rel=1e-5)


def test_the_command_says_what_it_fitted(house, tmp_path):
    folder, _ = house
    out = tmp_path / "new.safetensors"
    options = ["--group-by", "walk", "--out", str(out)]
    done = CliRunner().invoke(
        cli.main, ["calibrate", str(folder / "sharp.safetensors"), str(folder / "truth.csv"), *options]
    )
    assert done.exit_code == 0, done.output
    assert "160 images in 20 groups (walk); 1 could not be read" in done.output
    assert load_bundle(out, device="cpu").metadata["training"]["calibration"]["grouped_by"] == "walk"
    taken = CliRunner().invoke(
        cli.main, ["calibrate", str(folder / "sharp.safetensors"), str(folder / "truth.csv"), *options]
    )
    assert taken.exit_code == 5


def test_too_little_is_refused(house):
    folder, right = house
    table = read_image_table(folder / "truth.csv")
    few = table.iloc[:29].copy()
    few.attrs = dict(table.attrs)
    with pytest.raises(BadInputError, match=r"29 of 29 images can be read and have .* at least 30"):
        geo_mvmf.calibrate(right, few)
    nowhere = table.assign(longitude=np.nan, latitude=np.nan)
    nowhere.attrs = dict(table.attrs)
    with pytest.raises(BadInputError, match="0 of 162 images"):
        geo_mvmf.calibrate(right, nowhere)
    with pytest.raises(BadInputError, match=r"lie in 6 S2 cells of level 0; at least 8"):
        geo_mvmf.calibrate(right, table, block_level=0)
    rows = pd.DataFrame({"path": ["000.png"] * 3, "lon": [51.0, 48.0, -33.0], "lat": [107.0, 116.0, 151.0]})
    with pytest.raises(BadInputError, match=r"3 of 3 rows .* exchange the two columns"):
        geo_mvmf.calibrate(right, read_image_table(rows, root=folder))
    with pytest.raises(BadInputError, match="cannot group by 'no'"):
        geo_mvmf.calibrate(right, table, group_by="no")


def test_a_calibration_that_does_not_help_says_so(house):
    folder, right = house
    about = geo_mvmf.calibrate(right, used(folder)).metadata["training"]["calibration"]
    with pytest.warns(UserWarning, match="does not help"):
        calibration._warn({**about, "nll_change": 0.01})
    with pytest.warns(UserWarning, match="extreme"):
        calibration._warn({**about, "nll_change": -1.0, "temperature": 30.0})


def test_large_logits_lie_in_a_file_without_a_name(house, monkeypatch):
    folder, right = house
    table = used(folder)
    first = geo_mvmf.calibrate(right, table, group_by="walk")
    monkeypatch.setattr(calibration, "_IN_MEMORY_BYTES", 0)
    second = geo_mvmf.calibrate(dataclasses.replace(right), table, group_by="walk")
    assert isinstance(first.head, heads.MvmfHead)
    torch.testing.assert_close(first.head.weight, second.head.weight, rtol=0, atol=0)
