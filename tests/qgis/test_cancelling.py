"""Cancelling in QGIS, and a QGIS that is killed: what is left is valid, and no process is."""

import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import geopandas
import psutil
import pytest

from geo_mvmf import open_predictions

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "sample_data"
BUNDLE = SAMPLE / "relief.safetensors"
pytestmark = [pytest.mark.hard, pytest.mark.timeout(900)]

_spec = importlib.util.spec_from_file_location("qgis_cancel", ROOT / "benchmarks" / "qgis_cancel.py")
qgis_cancel = importlib.util.module_from_spec(_spec)
sys.modules["qgis_cancel"] = qgis_cancel
_spec.loader.exec_module(qgis_cancel)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Three hundred photos, so that there is time to stop."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(300):
        shutil.copyfile(SAMPLE / "chips" / "chip_00.jpg", folder / f"{number:03d}.jpg")
    return folder


def test_ten_cancellations_at_random_moments(tmp_path, qgis_is_there):
    """The benchmark does a hundred of them: `python benchmarks/qgis_plugin.py --cancels 100`."""
    found = qgis_cancel.cancel(tmp_path, 10, seed=1)
    assert len(found) == 10
    assert [each.faults for each in found] == [[]] * 10
    assert [each.orphans for each in found] == [0] * 10
    assert qgis_cancel.left_behind(tmp_path) == []
    assert any(each.kind == "partial" for each in found)


def test_a_process_that_is_left_is_noticed(tmp_path):
    """The broken twin: a child in a session of its own, whose parent is gone."""
    command = f'"{sys.executable}" -c "import time; time.sleep(60)" >/dev/null & echo $!'
    own = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    started = subprocess.run(["/bin/sh", "-c", command], env=own, stdout=subprocess.PIPE, text=True, check=True)
    (left,) = qgis_cancel.left_behind(tmp_path)
    assert left == int(started.stdout)
    psutil.Process(left).kill()


def test_damaged_and_short_results_are_noticed(tmp_path):
    """The broken twins: files cut short, and a layer without its rows."""
    points, predictions = tmp_path / "p.gpkg", tmp_path / "p.nc"
    for path in (points, predictions):
        path.write_bytes(b"nothing")
    assert len(qgis_cancel.damage(points, predictions)) == 2
    points.unlink()
    with sqlite3.connect(points) as database:
        database.execute("CREATE TABLE points (status TEXT, geom BLOB)")
    assert "0 rows" in qgis_cancel.damage(points, predictions)[0]
    said = {"folder": str(tmp_path), "ok": True, "results": ["POINTS"], "stopped": 0.1, "ended": 0.2}
    (tmp_path / "p.nc.tmp").touch()
    judged = qgis_cancel.judge(said, [1])
    assert judged.orphans == 1
    assert any("told otherwise" in fault for fault in judged.faults)
    assert any("p.nc.tmp" in fault for fault in judged.faults)


def test_a_cancelled_prediction_goes_on(probe, many, tmp_path):
    outs = {"POINTS": str(tmp_path / "p.gpkg"), "PREDICTIONS": str(tmp_path / "p.nc")}
    parameters = {"FOLDER": str(many), "BUNDLE": str(BUNDLE), "BATCH_SIZE": 4, **outs}
    step = {"algorithm": "geomvmf:predictphotos", "parameters": parameters}
    (stopped,) = probe({"do": "run", "steps": [dict(step, cancel_on="predict ...")]}, sys.executable, timeout=280)
    assert stopped["error"] == ""
    first = geopandas.read_file(outs["POINTS"], layer="points")
    assert len(first) == 300
    assert set(first["status"]) <= {"ok", "cancelled"}
    assert (first["status"] == "cancelled").any()
    assert first.loc[first["status"] == "cancelled", "message"].str.len().min() > 5
    assert len(open_predictions(outs["PREDICTIONS"])) == 300
    assert qgis_cancel.left_behind(tmp_path) == []
    (finished,) = probe({"do": "run", "steps": [step]}, sys.executable, timeout=280)
    assert (finished["error"], finished["results"]["COUNT"], finished["results"]["FAILED"]) == ("", 300, 0)
    assert {path.name for path in tmp_path.iterdir()} <= {"p.nc", "p.gpkg", "profile", "request.json", "seen.json"}


@pytest.mark.parametrize("moment", ["load", "predict"])
def test_the_worker_of_a_killed_qgis_ends(launch, many, tmp_path, moment):
    """QGIS is killed while the worker imports and loads, and while images are in work."""
    outs = {"POINTS": tmp_path / "p.gpkg", "PREDICTIONS": tmp_path / "p.nc"}
    wanted = {"FOLDER": many, "BUNDLE": BUNDLE, "BATCH_SIZE": "1", **outs}
    with (tmp_path / "log").open("w") as log, launch("geomvmf:predictphotos", wanted, sys.executable, log) as qgis:
        deadline = time.monotonic() + 120
        while f"{moment} ..." not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert qgis.poll() is None
        workers = qgis_cancel.left_behind(tmp_path, but=qgis.pid)
        qgis.kill()
    assert workers
    killed = time.monotonic()
    while qgis_cancel.left_behind(tmp_path) and time.monotonic() < killed + 30:
        time.sleep(0.02)
    assert qgis_cancel.left_behind(tmp_path) == []
    assert not outs["POINTS"].exists()
