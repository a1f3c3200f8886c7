"""Batches, slices and threads decide nothing: every way to cut the same images gives the same part."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from geo_mvmf import (
    begun_part,
    prediction_densities,
    prediction_parts,
    prediction_weights,
    read_image_table,
    s2,
    sphere,
)
from geo_mvmf.files import stores, weights
from geo_mvmf.mixture import VmfMixture
from geo_mvmf.model import bundle as bundles
from geo_mvmf.model import heads
from geo_mvmf.model.untrained import untrained_bundle


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no picture")
    frame = pd.DataFrame({"path": [f"{i}.png" for i in (0, 1, 9, 2, 3, 4, 5, 6)]})  # 9.png is missing
    return read_image_table(frame, root=folder)


def part_of(table, batch_size, workers):
    return run(prediction_parts.Predictor(untrained_bundle(), table, "component", batch_size, workers))


def run(predictor):
    job, events = predictor.part(0, len(predictor.table)), []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return events, *end.value


def test_batches_and_threads_change_no_row(table):
    _, rows, pruned = part_of(table, 8, 1)
    assert rows["status"].tolist() == ["ok", "ok", "missing", "ok", "unsupported", "ok", "ok", "ok"]
    for batch_size, workers in ((1, 0), (2, 2), (3, 3), (8, 5)):
        events, other_rows, other = part_of(table, batch_size, workers)
        assert [event.done for event in events] == [1, *range(1 + batch_size, 8, batch_size), 8]
        failures = [failure for event in events for failure in event.failures]
        assert [(failure.path, failure.status) for failure in failures] == [
            ("9.png", "missing"),
            ("3.png", "unsupported"),
        ]
        # sums of a network differ in the last digits with the size of its batches
        pd.testing.assert_frame_equal(rows, other_rows, rtol=1e-4)
        assert np.array_equal(pruned.offsets, other.offsets)
        assert np.array_equal(pruned.component, other.component)
        np.testing.assert_allclose(pruned.log_weight, other.log_weight, atol=1e-5)


def test_each_image_owns_the_weights_that_the_bundle_gives_it(table):
    _, rows, pruned = part_of(table, 3, 2)
    failed = rows["status"].ne("ok").to_numpy()
    assert np.array_equal(np.diff(pruned.offsets) == 0, failed)
    assert np.array_equal(np.isnan(pruned.residual), failed)
    owned = np.split(np.exp(pruned.log_weight.astype(float)), pruned.offsets[1:-1])
    sums = np.array([weights.sum() for weights in owned]) + pruned.residual
    np.testing.assert_allclose(sums[~failed], 1.0, atol=1e-5)
    heaviest = [weights.max() for weights, bad in zip(owned, failed, strict=True) if not bad]
    np.testing.assert_allclose(rows.loc[~failed, "component_weight"], heaviest, rtol=1e-5)


def test_weights_in_the_wrong_order_are_noticed(table):
    """The broken twin: pieces that are joined in another order no longer fit the rows."""
    pieces = [(np.array([i]), stores.prune(np.log([[0.1 + 0.2 * i, 0.9 - 0.2 * i]]))) for i in range(3)]
    right, wrong = (prediction_weights.assembled(order, 4) for order in (pieces, pieces[::-1]))
    assert right.offsets.tolist() == [0, 2, 4, 6, 6]
    np.testing.assert_allclose(np.exp(right.log_weight[::2]), [0.1, 0.3, 0.5], rtol=1e-6)
    assert not np.allclose(right.log_weight, wrong.log_weight)


def many_components(sharpness):
    """A bundle of 6144 components all over the Earth, whose untrained output layer is as sharp as a trained one."""
    cells = s2.face_cells()
    for _ in range(5):
        cells = s2.children(cells).ravel()
    cells = np.sort(cells)
    plain = untrained_bundle()
    head = heads.MvmfHead(64, s2.centre(cells), np.linspace(2.0, 14.0, cells.size), seed=0)
    with torch.no_grad():
        head.weight.mul_(sharpness)
    return dataclasses.replace(plain, head=head.eval(), cell_ids=cells, counts=np.arange(cells.size))


@pytest.mark.parametrize("estimator", ["component", pytest.param("mode", marks=pytest.mark.hard)])
def test_the_components_that_an_image_keeps_tell_as_much_of_it_as_all(table, monkeypatch, estimator):
    """What is left out holds 1e-4 of the weight; the truth is judged by all components, for it may lie out there."""
    table = table.assign(longitude=np.linspace(-170.0, 170.0, len(table)), latitude=-75.0)
    kept = []
    for sharpness in (250.0, 400.0):  # of some images more than 512 components matter, of others few
        predictor = prediction_parts.Predictor(many_components(sharpness), table, estimator, 8, 1)
        (_, rows, pruned), alone = run(predictor), prediction_densities._MANY_COMPONENTS
        kept += np.diff(pruned.offsets)[rows["status"] == "ok"].tolist()
        monkeypatch.setattr(prediction_densities, "_MANY_COMPONENTS", 1 << 40)
        _, expected, whole = run(predictor)
        monkeypatch.setattr(prediction_densities, "_MANY_COMPONENTS", alone)
        assert np.array_equal(pruned.component, whole.component)
        exact = ["longitude", "latitude", "error_km", "training_density_percentile", "feature_distance"]
        pd.testing.assert_frame_equal(rows[exact], expected[exact], rtol=1e-9)
        # areas: one component more or less at the cut moves sampled nodes
        pd.testing.assert_frame_equal(rows, expected, rtol=2e-2, atol=2e-4)
    assert min(kept) <= 96 < 512 < max(kept)


def test_no_pass_gives_more_weights_than_the_budget_allows(table, monkeypatch):
    bundle, seen, plain = many_components(400.0), [], bundles.Bundle.predict
    monkeypatch.setattr(bundles.Bundle, "predict", lambda self, images: seen.append(len(images)) or plain(self, images))
    monkeypatch.setattr(prediction_parts, "WEIGHTS_BYTES", 3 * 4 * 6144 + 1)
    _, rows, _ = run(prediction_parts.Predictor(bundle, table, "component", 8, 1))
    assert seen == [3, 2, 1]  # of seven that are there, one of which is no image
    assert rows["status"].eq("ok").sum() == 6


def test_a_file_that_moved_outside_meanwhile_tells_nothing(tmp_path, monkeypatch):
    """The time of capture is read after the pixels, of a file that may be another by then."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    for folder in (inside, outside):
        folder.mkdir()
        Image.new("RGB", (40, 40)).save(folder / "a.jpg", exif=exif)
    table = read_image_table(inside)
    assert part_of(table, 8, 1)[1]["captured_at"].tolist() == ["2001-02-03T04:05:06"]
    plain = bundles.Bundle.predict

    def swapping(self, images):
        (inside / "a.jpg").unlink()
        (inside / "a.jpg").symlink_to(outside / "a.jpg")
        return plain(self, images)

    monkeypatch.setattr(bundles.Bundle, "predict", swapping)
    rows = part_of(table, 8, 1)[1]
    assert rows["status"].tolist() == ["ok"]
    assert rows["captured_at"].isna().all()


def streamed(monkeypatch):
    monkeypatch.setattr(prediction_densities, "STREAMED_COMPONENTS", 6144)


@pytest.mark.parametrize("estimator", ["component", pytest.param("mode", marks=pytest.mark.hard)])
def test_streamed_weights_tell_the_same_as_all_weights(table, monkeypatch, estimator):
    """Which components are kept is known to the rounding of a softmax: 2e-6 of the weight, a fiftieth of the tail."""
    kept = []
    for sharpness in (250.0, 400.0):
        predictor = prediction_parts.Predictor(many_components(sharpness), table, estimator, 3, 1)
        _, expected, whole = run(predictor)
        with monkeypatch.context() as patch:
            streamed(patch)
            patch.setattr(prediction_parts, "HEAD_IMAGES", 4)
            patch.setattr(bundles.Bundle, "predict", None)  # nobody asks for all weights
            events, rows, pruned = run(prediction_parts.Predictor(predictor.bundle, table, estimator, 3, 1))
        assert [event.done for event in events] == [1, 7, 8]  # of three batches two go through the layer together
        few = np.diff(whole.offsets)
        kept += few[few > 0].tolist()
        assert np.all(np.abs(np.diff(pruned.offsets) - few) <= 0.03 * few + 1)
        np.testing.assert_allclose(pruned.residual, whole.residual, rtol=0.1)
        exact = ["longitude", "latitude", "training_density_percentile", "feature_distance", "captured_at", "status"]
        pd.testing.assert_frame_equal(rows[exact], expected[exact], rtol=1e-5)
        # a component more or less at the cut moves sampled nodes; a flat image's others count by training counts
        pd.testing.assert_frame_equal(rows, expected, rtol=3e-2, atol=2e-4)
    assert min(kept) <= 96 < 512 < max(kept)


def test_streamed_images_of_many_components_have_nodes_of_their_own(table, monkeypatch):
    """Where nodes that all images share would take gigabytes, they are never made, and figures are the same."""
    bundle = many_components(250.0)
    _, expected, whole = run(prediction_parts.Predictor(bundle, table, "component", 8, 1))
    assert np.diff(whole.offsets).max() > 512
    streamed(monkeypatch)
    monkeypatch.setattr(prediction_densities, "_OWN_SHARE", 1)
    monkeypatch.setattr(prediction_densities.DensityMaker, "_mixture", None)  # nobody asks for all components
    _, rows, _ = run(prediction_parts.Predictor(bundle, table, "component", 8, 1))
    pd.testing.assert_frame_equal(rows, expected, rtol=6e-2, atol=2e-4)  # sampled at other nodes


def test_streamed_batches_and_threads_change_no_row(table, monkeypatch):
    streamed(monkeypatch)
    bundle, found = many_components(400.0), []
    for batch_size, workers, head in ((8, 1, 128), (1, 0, 1), (2, 3, 3)):
        monkeypatch.setattr(prediction_parts, "HEAD_IMAGES", head)
        found.append(run(prediction_parts.Predictor(bundle, table, "component", batch_size, workers)))
    (_, rows, pruned), *others = found
    for _, other_rows, other in others:
        pd.testing.assert_frame_equal(rows, other_rows, rtol=1e-3)
        assert np.abs(np.diff(pruned.offsets) - np.diff(other.offsets)).max() <= 1


def test_streamed_truth_is_judged_by_what_the_file_will_hold(table, monkeypatch):
    """The place may lie where no component is kept: there the residual is, and the density is finite."""
    streamed(monkeypatch)
    table = table.assign(longitude=np.linspace(-170.0, 170.0, len(table)), latitude=-75.0)
    bundle = many_components(400.0)
    _, rows, pruned = run(prediction_parts.Predictor(bundle, table, "component", 8, 1))
    good = np.flatnonzero(rows["status"] == "ok")
    assert rows["searched_probability"][good].between(0.0, 1.0).all()
    spread = weights.spread_all(weights.taken(pruned, good), bundle.training_counts)
    log_density = VmfMixture(bundle.mean_directions, bundle.log_concentrations, spread).log_density(
        sphere.to_directions(table["longitude"].to_numpy()[good], -75.0 + 0 * good)
    )
    assert np.isfinite(log_density).all()


def test_images_whose_weights_are_no_numbers_are_rows_that_failed(table, monkeypatch):
    for is_streamed in (False, True):
        bundle = many_components(400.0)
        with torch.no_grad():
            bundle.head.weight[5] = torch.nan
        if is_streamed:
            streamed(monkeypatch)
        _, rows, pruned = run(prediction_parts.Predictor(bundle, table, "component", 3, 1))
        assert rows["status"].tolist() == ["failed", "failed", "missing", "failed", "unsupported", *["failed"] * 3]
        assert pruned.component.size == 0


def test_one_image_without_weights_leaves_its_neighbours_theirs(table):
    bundle, plain = many_components(400.0), bundles.Bundle.predict

    def predict(self, images):
        logs, features = plain(self, images)
        logs[1] = np.nan
        return logs, features

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles.Bundle, "predict", predict)
        _, rows, pruned = run(prediction_parts.Predictor(bundle, table, "component", 8, 1))
    _, expected, whole = run(prediction_parts.Predictor(bundle, table, "component", 8, 1))
    assert rows["status"].tolist() == ["ok", "failed", *expected["status"][2:]]
    others = np.array([0, 3, 5, 6, 7])
    assert np.array_equal(weights.taken(pruned, others).component, weights.taken(whole, others).component)
    pd.testing.assert_frame_equal(rows.iloc[others], expected.iloc[others], rtol=1e-6)


def order_of(predictor, spans):
    """What happens in turn: batches that the network sees, and parts that are given."""
    seen, plain = [], bundles.Bundle.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles.Bundle, "predict", lambda self, images: seen.append(len(images)) or plain(self, images))
        for event in predictor.parts(spans):
            if isinstance(event, begun_part.PartRows):
                seen.append((event.start, event.stop))
    return seen


SPANS = [(0, 2), (2, 5), (5, 7), (7, 8)]  # of the second, two rows fail


def test_the_network_has_the_next_part_while_the_densities_of_one_are_made(table):
    predictor = prediction_parts.Predictor(untrained_bundle(), table, "component", 8, 1)
    assert order_of(predictor, SPANS) == [2, 1, (0, 2), 2, (2, 5), 1, (5, 7), (7, 8)]


def test_where_every_row_is_required_nothing_is_begun_behind_one_that_failed(table):
    predictor = prediction_parts.Predictor(untrained_bundle(), table, "component", 8, 1, strict=True)
    assert order_of(predictor, SPANS)[:4] == [2, 1, (0, 2), (2, 5)]


def test_parts_are_the_same_in_a_row_and_alone(table):
    predictor = prediction_parts.Predictor(untrained_bundle(), table, "component", 2, 2)
    in_a_row = [event for event in predictor.parts(SPANS) if isinstance(event, begun_part.PartRows)]
    assert [(each.start, each.stop) for each in in_a_row] == SPANS
    for each in in_a_row:
        (rows, pruned) = run_part(predictor, each.start, each.stop)
        pd.testing.assert_frame_equal(each.rows, rows, check_exact=True)
        assert each.pruned.log_weight.tobytes() == pruned.log_weight.tobytes()
        assert np.array_equal(each.pruned.offsets, pruned.offsets)


def run_part(predictor, start, stop):
    job = predictor.part(start, stop)
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def test_a_row_of_parts_that_is_stopped_keeps_what_is_finished_of_each(table):
    predictor = prediction_parts.Predictor(untrained_bundle(), table, "component", 1, 1)
    job = predictor.parts([(0, 4), (4, 8)])
    events = []
    while not (events and isinstance(events[-1], begun_part.PartRows)):
        events.append(next(job))
    job.close()
    assert predictor.begun_spans() == [(4, 8)]
    rows, pruned = predictor.left(4, 8)
    assert rows["status"].tolist() == ["unsupported", "cancelled", "cancelled", "cancelled"]
    assert pruned.component.size == 0
    assert predictor.left(0, 1)[0]["status"].tolist() == ["cancelled"]
