"""Parts made on a Dask cluster: the same file as without one, whatever happens to the workers."""

import contextlib
import importlib.util
import os
import random
import signal
import socket
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import geo_mvmf
from geo_mvmf import cli, distributed, events, predicting, progress
from geo_mvmf.errors import BadBundleError, DeviceError, RowsFailedError, UsageError
from geo_mvmf.inputs.tables import read_image_table
from geo_mvmf.model import bundle as bundles
from geo_mvmf.model.bundle import load_bundle, save_bundle
from geo_mvmf.model.devices import threads
from geo_mvmf.model.untrained import untrained_bundle
from geo_mvmf.prediction_folder import Part
from geo_mvmf.prediction_parts import Predictor

pytestmark = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs the extra dask")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(predicting, "PART_ROWS", 4)


@pytest.fixture(autouse=True)
def one_thread():
    """A worker's number of threads is 1, and sums may depend on it."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two workers that are threads of this process, and talk by TCP all the same."""
    from distributed import LocalCluster

    # any free port for the dashboard: tests in other processes have clusters of their own
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(protocol="tcp", host="127.0.0.1", **options) as found:
        yield found


@pytest.fixture
def saved(bundle_path):
    return load_bundle(bundle_path, device="cpu")


@pytest.fixture(scope="module")
def album(tmp_path_factory, bundle_path):
    """A table of eleven rows in three parts, one of which fails altogether, and its prediction without a cluster.

    The last image alone has a true place.
    """
    folder = tmp_path_factory.mktemp("album")
    for i in range(10):
        noise = np.random.default_rng(i).integers(0, 256, (40, 36, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    for i in (1, 4, 5, 6, 7):
        (folder / f"{i}.png").write_text("no image")
    places = {"lon": [None] * 9 + [7.0, None], "lat": [None] * 9 + [50.0, None]}
    paths = [*(f"{i}.png" for i in range(10)), "no.png"]
    table = read_image_table(pd.DataFrame({"path": paths, "land": "x", **places}), root=folder)
    out = tmp_path_factory.mktemp("here") / "a.nc"
    with threads(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicting, "PART_ROWS", 4)
        return table, geo_mvmf.predict(load_bundle(bundle_path, device="cpu"), table, out=out, batch_size=3), out


def until(is_so):
    """Wait for what happens soon."""
    for _ in range(3000):
        if is_so():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen within 30 s")


def test_a_cluster_gives_the_same_file_to_the_byte(cluster, saved, album, tmp_path):
    table, here, expected = album
    assert here.rows["error_km"].notna().tolist() == [False] * 9 + [True, False]
    events, out = [], tmp_path / "there.nc"
    job = predicting.predict_job(saved, table, out=out, batch_size=3, dask=cluster.scheduler_address)
    progress.run(job, events.append)
    assert out.read_bytes() == expected.read_bytes()
    failed = sorted(failure.path for event in events for failure in event.failures)
    assert failed == sorted(here.rows.loc[~here.is_predicted, "path"])
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert {event.total for event in events} == {11}
    assert not (tmp_path / "there.nc.parts").exists()


@pytest.mark.hard
def test_a_client_stays_open_and_a_cancelled_run_goes_on(cluster, saved, album, tmp_path):
    """Parts that are there are not made again, on a cluster or without one."""
    from distributed import Client

    (table, _, expected), out = album, tmp_path / "a.nc"
    with Client(cluster, set_as_default=False) as client:
        job = predicting.predict_job(saved, table, out=out, batch_size=3, dask=client)
        next(event for event in job if event.done)
        job.close()
        parts = {path: path.stat().st_ino for path in out.with_name("a.nc.parts").glob("part-*.nc")}
        assert len(parts) == 1
        until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
        job = predicting.predict_job(saved, table, out=out, batch_size=3, dask=client)
        next(job)  # the part that is there
        with pytest.raises(StopIteration) as end:  # one that is told to stop writes what it has
            job.throw(progress.CancelledError)
        assert end.value.value.run["cancelled"] > 0
        assert {path: path.stat().st_ino for path in parts} == parts
        assert client.status == "running"
    geo_mvmf.predict(saved, table, out=out, batch_size=3)
    assert out.read_bytes() == expected.read_bytes()


def test_workers_stop_between_batches_once_nobody_wants_their_parts(cluster, saved, make_album, tmp_path, monkeypatch):
    make_album(tmp_path / "photos", 8)
    seen, go, plain = [], threading.Event(), bundles.Bundle.predict

    def waiting(self, images):
        seen.append(len(images))
        go.wait(30)
        return plain(self, images)

    monkeypatch.setattr(bundles.Bundle, "predict", waiting)
    table = read_image_table(tmp_path / "photos")
    job = predicting.predict_job(saved, table, batch_size=1, dask=cluster.scheduler_address)
    next(job)
    until(lambda: len(seen) == 2)
    job.close()
    tasks = [task for worker in cluster.workers.values() for task in worker.state.tasks.values()]
    until(lambda: {task.state for task in tasks} <= {"cancelled", "released", "forgotten"})
    go.set()
    until(lambda: not any(worker.state.tasks for worker in cluster.workers.values()))
    assert len(seen) <= 4  # of eight images, by two workers: the one in work, and the one that followed it at once


def test_strict_stops_at_the_first_part_that_failed(cluster, saved, make_album, tmp_path):
    names = make_album(tmp_path / "photos", 9)
    (tmp_path / "photos" / names[6]).write_text("no image")
    out = tmp_path / "new" / "a.nc"
    with pytest.raises(RowsFailedError, match=f"1 of 4 rows failed.*{names[6]}"):
        geo_mvmf.predict(
            saved, read_image_table(tmp_path / "photos"), out=out, strict=True, dask=cluster.scheduler_address
        )
    assert not out.parent.exists()


def test_the_command_predicts_on_a_cluster(cluster, bundle_path, make_album, tmp_path):
    make_album(tmp_path / "photos", 5)
    command = ["predict", tmp_path / "photos", "--bundle", bundle_path, "--dask", cluster.scheduler_address, "--out"]
    done = CliRunner().invoke(cli.main, list(map(str, [*command, tmp_path / "a.nc"])))
    assert done.exit_code == 0, done.output
    assert f"device auto of the workers of {cluster.scheduler_address}" in done.output
    assert geo_mvmf.open_predictions(tmp_path / "a.nc").is_predicted.all()


# --- what cannot be ----------------------------------------------------------------------------------------------


def test_a_worker_that_opens_another_bundle_says_so(cluster, make_album, tmp_path):
    make_album(tmp_path / "photos", 2)
    table, path = read_image_table(tmp_path / "photos"), tmp_path / "b.safetensors"
    with pytest.raises(UsageError, match=r"save it with save_bundle"):
        geo_mvmf.predict(untrained_bundle(seed=3), table, dask=cluster.scheduler_address)
    save_bundle(untrained_bundle(seed=3), path)
    ours = load_bundle(path, device="cpu")
    save_bundle(untrained_bundle(seed=4), path, overwrite=True)
    with pytest.raises(BadBundleError, match=rf"worker tcp://.*b\.safetensors has digest .*, not {ours.digest[:12]}"):
        geo_mvmf.predict(ours, table, dask=cluster.scheduler_address)
    path.unlink()
    with pytest.raises(BadBundleError, match=r"worker tcp://.*no such file.* by the path it has here"):
        geo_mvmf.predict(ours, table, dask=cluster.scheduler_address)


def test_another_version_on_a_worker_is_refused_whatever_else_it_is_asked():
    with pytest.raises(DeviceError, match=r"has geo_mvmf .*, not 0\.0\.0, which asks"):
        distributed.predict_part({"version": "0.0.0", "something": "new"})


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom", "CUDA out of memory"),
        (RuntimeError("CUDA error: no kernel image is available"), "device", "no kernel image"),
        (RuntimeError("shapes do not fit"), "internal", "shapes do not fit"),
        # the twins, which are of the environment indeed
        (ImportError("No module named 'geo_mvmf.new'"), "device", "give all of them the same environment"),
        (RuntimeError("Error during deserialization of the task graph."), "device", "the same environment"),
    ],
)
def test_what_fails_on_a_worker_is_said_as_if_it_had_failed_here(
    cluster, saved, make_album, tmp_path, monkeypatch, error, code, message
):
    def fail(*_):
        raise error

    make_album(tmp_path, 1)
    monkeypatch.setattr(bundles.Bundle, "predict", fail)
    with pytest.raises((RuntimeError, DeviceError), match=message) as caught:
        geo_mvmf.predict(saved, read_image_table(tmp_path), dask=cluster.scheduler_address)
    why = events.explain(caught.value)
    assert why.code == code
    assert bool(why.hint)


def test_an_image_that_only_we_can_see_is_not_missing(saved, make_album, tmp_path):
    make_album(tmp_path, 2)
    predictor = Predictor(saved, read_image_table(tmp_path), "component", 32, 1)
    rows = pd.DataFrame({"status": ["ok", "missing"]})
    with pytest.raises(DeviceError, match=r"image_001\.png: is here, but a worker cannot see it"):
        distributed._check_seen(predictor, Part(0, 0, 2), rows)
    (tmp_path / "image_001.png").unlink()
    distributed._check_seen(predictor, Part(0, 0, 2), rows)


def test_no_scheduler_no_extra_no_address(saved, make_album, tmp_path, monkeypatch):
    make_album(tmp_path, 1)
    table = read_image_table(tmp_path)
    monkeypatch.setattr(distributed, "CONNECT_SECONDS", 0.3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        for address in (f"tcp://127.0.0.1:{taken.getsockname()[1]}", "nonsense", "foo://a:1", ""):
            with pytest.raises(DeviceError, match="no Dask scheduler answers"):
                geo_mvmf.predict(saved, table, dask=address)
    with socket.create_server(("127.0.0.1", 0)) as server:  # a dashboard, a web server

        def answer():
            with server.accept()[0] as other:
                other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DeviceError, match="no Dask scheduler answers"):
            geo_mvmf.predict(saved, table, dask=f"tcp://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    with pytest.raises(UsageError, match="dask is 8786"):
        geo_mvmf.predict(saved, table, dask=8786)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r'pip install "geo-mvmf\[dask\]"'):
        geo_mvmf.predict(saved, table, dask="tcp://127.0.0.1:1")


# --- violence ----------------------------------------------------------------------------------------------------


def check_rows(found, expected):
    """Every row once, in its place, with the values of an undisturbed run."""
    assert found.rows["image_id"].tolist() == expected.rows["image_id"].tolist()
    pd.testing.assert_frame_equal(found.rows, expected.rows, check_exact=True)
    images = np.flatnonzero(expected.is_predicted)
    np.testing.assert_array_equal(found.store.log_mixing_weights(images), expected.store.log_mixing_weights(images))


@contextlib.contextmanager
def closing_slowly(cluster):
    """Close a cluster whose workers may be in the middle of their beginning, on a busy machine."""
    try:
        yield cluster
    finally:
        with contextlib.suppress(TimeoutError):
            cluster.close(timeout=60)


@pytest.mark.hard
@pytest.mark.parametrize("failures", [0, 3])
def test_killed_workers_cost_their_parts_time_and_nothing_else(saved, make_album, tmp_path, monkeypatch, failures):
    """Worker processes are killed -9 at random moments; with 0, Dask itself never gives a part to another one.

    Not while they begin: a nanny whose worker dies then gives up, and nobody starts another one.
    """
    import dask
    from distributed import LocalCluster

    monkeypatch.setattr(distributed, "TRIES", 20)
    names = make_album(tmp_path / "photos", 80)
    (tmp_path / "photos" / names[47]).write_text("no image")
    table = read_image_table(tmp_path / "photos")
    expected = geo_mvmf.predict(saved, table)
    chance, killed, asked = random.Random(failures), [], 0
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": failures}),
        closing_slowly(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")) as cluster,
    ):
        plain = distributed._request

        def counted(*arguments):
            nonlocal asked
            asked += 1
            return plain(*arguments)

        monkeypatch.setattr(distributed, "_request", counted)
        job = predicting.predict_job(saved, table, out=tmp_path / "a.nc", dask=cluster.scheduler_address)
        at = set(chance.sample(range(0, 76, 4), 5))
        for event in job:
            if event.done in at:
                at.remove(event.done)
                until(lambda: cluster.scheduler.workers)
                working = set(cluster.scheduler.workers)
                pids = [nanny.pid for nanny in cluster.workers.values() if nanny.worker_address in working]
                killed.append(chance.choice(pids))
                os.kill(killed[-1], signal.SIGKILL)
    assert len(killed) == 5
    assert asked >= 20
    found = geo_mvmf.open_predictions(tmp_path / "a.nc")
    check_rows(found, expected)
    # the broken twin loses the parts of killed workers, and puts others in their places
    parts = [found.rows.iloc[i : i + 4] for i in range(0, 80, 4)]
    for wrong in (parts[:9] + parts[10:], parts[:9] + parts[8:9] + parts[10:], parts[1::-1] + parts[2:]):
        assert not pd.concat(wrong, ignore_index=True).equals(expected.rows)
