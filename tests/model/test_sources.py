"""Sources: batches come in order and whole, whoever reads them and whenever the loop stops; parts are the batch."""

import threading

import numpy as np
import pytest
import torch

from geo_mvmf.errors import BadInputError
from geo_mvmf.model import idle_memory, sources
from geo_mvmf.model.features import FeatureCache
from geo_mvmf.model.sources import Batch, FeatureSource

CPU = torch.device("cpu")


@pytest.fixture
def cache():
    """Thirty rows whose first feature is their number; two have none."""
    features = np.zeros((40, 5), dtype=np.float16)
    features[:, 0] = np.arange(40)
    index = np.arange(30)[::-1].copy() + 10
    index[[3, 29]] = -1
    return FeatureCache(features, index, ["ok"] * 30, ["no such file"] * 30)


def orders(count):
    rng = np.random.default_rng(0)
    return [rng.choice(np.r_[0:3, 4:29], 6, replace=False) for _ in range(count)]


@pytest.mark.parametrize("group_rows", [1, 12, 2048])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 23])
def test_features_that_are_read_ahead_come_in_order_and_as_they_are_cached(cache, count, group_rows, monkeypatch):
    monkeypatch.setattr(sources, "_GROUP_ROWS", group_rows)
    monkeypatch.setattr(idle_memory, "LEAST_BYTES", 1)  # as of wide features: their memory goes round
    wanted = orders(count)
    found = list(FeatureSource(cache, CPU).batches(iter(wanted)))
    assert len(found) == count
    for rows, batch in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(batch.rows, rows)
        assert batch.inputs.dtype == torch.float16
        np.testing.assert_array_equal(batch.inputs.float().numpy(), cache.rows(rows))
        assert batch.readable.all()


def test_memory_goes_round_once_batches_are_dropped(cache, monkeypatch):
    monkeypatch.setattr(sources, "_GROUP_ROWS", 12)
    monkeypatch.setattr(idle_memory, "LEAST_BYTES", 1)
    stream = FeatureSource(cache, CPU).batches(iter(orders(200)))
    places = {batch.inputs.untyped_storage().data_ptr() for batch in stream}
    assert len(places) <= sources._AHEAD + 3  # read, being read, looked at; of a hundred groups


def test_no_more_is_read_than_a_few_groups_ahead_and_no_thread_stays(cache, monkeypatch):
    monkeypatch.setattr(sources, "_GROUP_ROWS", 12)  # two batches
    asked, before = [], threading.active_count()

    def endless():
        for rows in orders(1000):
            asked.append(rows)
            yield rows

    stream = FeatureSource(cache, CPU).batches(endless())
    for _ in range(3):
        next(stream)
    stream.close()
    assert len(asked) == 2 * (2 + sources._AHEAD)  # the third is of the second group
    assert threading.active_count() == before


def test_what_reading_raises_comes_out_of_the_loop(cache, monkeypatch):
    monkeypatch.setattr(sources, "_GROUP_ROWS", 1)
    stream = FeatureSource(cache, CPU).batches(iter([np.array([0]), np.array([5, 3]), np.array([7])]))
    assert next(stream).rows.tolist() == [0]
    with pytest.raises(BadInputError, match="row 3 has no features: ok: no such file"):
        next(stream)


def test_parts_of_a_batch_are_its_rows_in_order_and_nearly_of_one_size():
    batch = Batch(np.arange(10, 27), torch.arange(34.0).view(17, 2), np.arange(17) % 3 > 0)
    for count in (1, 2, 5, 17):
        parts = batch.parts(count)
        sizes = [len(part.rows) for part in parts]
        assert len(parts) == count
        assert max(sizes) - min(sizes) <= 1
        np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), batch.rows)
        np.testing.assert_array_equal(np.concatenate([part.readable for part in parts]), batch.readable)
        assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
