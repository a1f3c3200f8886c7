"""Regions of albums: block by block and by several processes the same; nothing is left of what was interrupted."""

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_mvmf import region_job, sphere
from geo_mvmf.errors import UsageError
from geo_mvmf.files import stores
from geo_mvmf.stored_mixtures import mixture_of_rows

LEVELS = (0.5, 0.9)
PROC = Path("/proc")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Forty images over nine components, two of them without a prediction."""
    generator = np.random.default_rng(0)
    directions = sphere.random_directions(9, generator)
    components = stores.Components(
        "vmf", directions, generator.uniform(3.0, 9.0, 9), np.ones(9, np.int64), np.zeros(9, np.uint64)
    )
    weights = generator.dirichlet(np.ones(9), 40)
    counts = np.full(40, 9)
    counts[[3, 20]] = 0
    kept = np.repeat(counts > 0, 9)
    rows = pd.DataFrame({"image_id": [f"image {i}" for i in range(40)], "path": "", "status": "ok", "message": ""})
    pruned = stores.Pruned(
        np.tile(np.arange(9, dtype=np.uint32), 40)[kept],
        np.log(weights).ravel()[kept].astype(np.float32),
        np.concatenate([[0], np.cumsum(counts)]),
        np.where(counts > 0, 0.0, np.nan),
    )
    path = tmp_path_factory.mktemp("album") / "a.nc"
    stores.write_store(path, rows=rows, pruned=pruned, components=components, run={})
    return stores.open_store(path)


def result_of(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as stop:
            return stop.value, events


@pytest.mark.hard
def test_blocks_and_processes_give_the_same_in_order(store):
    rows = np.flatnonzero(store.is_predicted)
    alone, events = result_of(region_job.regions_job(store, rows, LEVELS))
    assert [event.done for event in events] == [8, 16, 24, 32, 38]
    assert {(event.stage, event.total) for event in events} == {("regions", 38)}
    assert alone["image_id"].tolist() == [f"image {i}" for i in rows for _ in LEVELS]
    together, _ = result_of(region_job.regions_job(store, rows, LEVELS, workers=2))
    assert together.crs == alone.crs
    pd.testing.assert_frame_equal(together.drop(columns="geometry"), alone.drop(columns="geometry"))
    assert together.geometry.geom_equals(alone.geometry).all()
    assert not multiprocessing.active_children()


def test_few_images_need_no_processes(store, monkeypatch):
    monkeypatch.setattr(region_job, "ProcessPoolExecutor", None)
    assert len(result_of(region_job.regions_job(store, np.arange(2), LEVELS, workers=8))[0]) == 4
    assert len(result_of(region_job.regions_job(store, np.arange(0), LEVELS, workers=8))[0]) == 0


@pytest.mark.hard
def test_an_interruption_leaves_no_process_and_ends_nobody_elses(store):
    job = region_job.regions_job(store, np.flatnonzero(store.is_predicted), LEVELS, workers=2)
    next(job)
    theirs = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60.0,))
    theirs.start()
    job.close()
    deadline = time.monotonic() + 20.0
    while multiprocessing.active_children() != [theirs] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == [theirs]
    theirs.kill()
    theirs.join()


@pytest.mark.hard
def test_a_process_that_is_ended_from_outside_is_a_clear_error(store):
    job = region_job.regions_job(store, np.tile(np.flatnonzero(store.is_predicted), 20), LEVELS, workers=2)
    next(job)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(UsageError, match="ended from outside, probably for want of memory"):
        result_of(job)
    with pytest.raises(UsageError, match="workers is 0"):
        result_of(region_job.regions_job(store, np.arange(2), LEVELS, workers=0))


SCRIPT = """
import os, sys, time
import numpy as np
from geo_mvmf import region_job
from geo_mvmf.files import stores
if __name__ == "__main__":
    store = stores.open_store(sys.argv[1])
    rows = np.tile(np.flatnonzero(store.is_predicted), 1000)
    job = region_job.regions_job(store, rows, (0.5, 0.9), workers=2)
    next(job)
    import multiprocessing
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    for _ in job:
        pass
"""


@pytest.mark.hard
@pytest.mark.skipif(not PROC.is_dir(), reason="looks for processes in /proc")
def test_killed_with_its_parent(store, tmp_path):
    """Processes that outlive who asked would work on, and hold the terminal."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(script), str(store.path)], stdout=subprocess.PIPE, text=True) as parent:
        children = parent.stdout.readline().split()
        assert len(children) == 2
        parent.kill()
    deadline = time.monotonic() + 10.0
    while any((PROC / child).is_dir() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any((PROC / child).is_dir() for child in children)


def test_what_is_computed_is_what_the_mixture_gives(store):
    from geo_mvmf.maps.regions import credible_regions

    rows = np.array([5, 1])
    found, _ = result_of(region_job.regions_job(store, rows, LEVELS))
    expected = credible_regions(mixture_of_rows(store, rows), LEVELS, image_ids=["image 5", "image 1"])
    pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(expected))
