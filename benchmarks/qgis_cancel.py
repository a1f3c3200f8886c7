"""Cancel predictions in QGIS at random moments, or kill QGIS, and look at what is left.

The QGIS side runs in QGIS's own Python (`QGIS_PYTHON`, /usr/bin/python3), with the plugin's own runner, the real worker
and the sample's bundle; everything left behind is judged here, from outside.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geo_mvmf import open_predictions
from geo_mvmf.errors import GeoMvmfError

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 300
_IN_QGIS = """
import json, os, random, sys, threading, time
from qgis.core import QgsApplication, QgsProcessingContext, QgsProcessingFeedback
application = QgsApplication([], False)
application.initQgis()
from mvmf_locator import classFactory
plugin = classFactory(None)
plugin.initProcessing()

class Feedback(QgsProcessingFeedback):
    def __init__(self, delay, late):
        super().__init__(False)
        self.asked = self.gone = self.predicting = None
        self.late, self.timer = late, threading.Timer(delay, self.stop)

    def stop(self):
        self.asked = time.monotonic()
        self.cancel()

    def setProgressText(self, text):
        if text == "predict ..." and not self.predicting:
            self.predicting = time.monotonic()
            if self.late:
                self.timer.start()

    def pushCommandInfo(self, text):  # the next request: the worker before it has ended
        if self.predicting and not self.gone:
            self.gone = time.monotonic()

def predict(folder, delay, late):
    os.makedirs(folder)
    outs = {"POINTS": f"{folder}/p.gpkg", "PREDICTIONS": f"{folder}/p.nc"}
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("geomvmf:predictphotos")
    feedback, context = Feedback(delay, late), QgsProcessingContext()
    began = time.monotonic()
    if not late:
        feedback.timer.start()
    results, ok = algorithm.run(dict(request["parameters"], **outs), context, feedback)
    ended = time.monotonic()
    feedback.timer.cancel()
    gone, asked = feedback.gone or ended, feedback.asked
    return {
        "folder": folder, "ok": ok, "results": sorted(set(results) & set(outs)),
        "stopped": max(gone - asked, 0.0) if asked else None, "ended": ended - asked if asked else None,
        "spans": [gone - began, gone - (feedback.predicting or began)],
    }

request = json.loads(sys.stdin.readline())
moments = random.Random(request["seed"])
spans = predict(request["folder"] + "/whole", 1e6, False)["spans"]
for number in range(request["tries"]):
    late = bool(number % 2)
    said = predict(f"{request['folder']}/{number:03d}", moments.uniform(0.0, spans[late]), late)
    print(json.dumps(said), flush=True)
    sys.stdin.readline()  # go on when it has been judged
os._exit(0)
"""


class Try(NamedTuple):
    """One prediction that was cancelled.

    Attributes
    ----------
    kind : str
        How far it was: nothing (no image yet), partial, finished (asked too late).
    faults : list of str
        What must not be: damaged files, files that the run does not name, rows of no use.
    orphans : int
        Processes of the worker that were left.
    stopped, ended : float or None
        Seconds from asking until the predicting worker was gone, and until the algorithm had ended.
    """

    kind: str
    faults: list[str]
    orphans: int
    stopped: float | None
    ended: float | None


def cancel(folder: Path, tries: int, *, seed: int = 0, python: str = sys.executable) -> list[Try]:
    """Cancel predictions of 300 images at random moments.

    They are drawn uniformly over the time that a whole prediction takes, for every second one over that with images in
    work.
    """
    found = []
    with _start(folder, tries, seed, python) as qgis:
        for line in filter(lambda text: text.startswith("{"), qgis.stdout):
            deadline = time.monotonic() + 2.0  # a worker's own watcher may need a moment longer than the worker
            while (left := left_behind(folder, but=qgis.pid)) and time.monotonic() < deadline:
                time.sleep(0.05)
            found.append(judge(json.loads(line), left))
            print(f"  {len(found)}/{tries}: {found[-1]}", file=sys.stderr)
            qgis.stdin.write("\n")
            qgis.stdin.flush()
    return found


def kill(folder: Path, tries: int, *, seed: int = 0, python: str = sys.executable, span_s: float = 8.0) -> list[float]:
    """Kill QGIS with SIGKILL while it predicts, at most `span_s` after its worker began.

    Gives the seconds until no process of it was left; infinite where one was still there after half a minute.
    """
    moments, found = np.random.default_rng(seed), []
    for number in range(tries):
        here = folder / f"{number:03d}"
        with _start(here, 1, seed, python) as qgis:
            while not left_behind(here, but=qgis.pid) and qgis.poll() is None:
                time.sleep(0.05)
            time.sleep(moments.uniform(0.0, span_s))
            qgis.kill()
            killed = time.monotonic()
            left = left_behind(here, but=qgis.pid)
            while left and time.monotonic() < killed + 30.0:
                time.sleep(0.01)
                left = left_behind(here, but=qgis.pid)
            found.append(float("inf") if left else time.monotonic() - killed)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        print(f"  {number + 1}/{tries}: {found[-1]:.2f} s", file=sys.stderr)
        shutil.rmtree(here)
    return found


def _start(folder: Path, tries: int, seed: int, python: str) -> subprocess.Popen[str]:
    """Start QGIS's Python, which predicts a folder of images once, and then again for every try."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number in range(IMAGES):
        shutil.copyfile(ROOT / "sample_data" / "chips" / "chip_00.jpg", photos / f"{number:03d}.jpg")
    bundle = ROOT / "sample_data" / "relief.safetensors"
    parameters = {"FOLDER": str(photos), "BUNDLE": str(bundle), "BATCH_SIZE": 4}
    request = {"parameters": parameters, "folder": str(folder / "runs"), "tries": tries, "seed": seed}
    command = [os.environ.get("QGIS_PYTHON", "/usr/bin/python3"), "-c", _IN_QGIS]
    pipe, variables = subprocess.PIPE, _variables(folder, python)
    qgis = subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, text=True)
    qgis.stdin.write(json.dumps(request) + "\n")
    qgis.stdin.flush()
    return qgis


def judge(said: dict[str, Any], orphans: list[int]) -> Try:
    """Look at what one cancelled run left in its folder."""
    here = Path(said["folder"])
    faults = [] if said["ok"] else ["the algorithm failed"]
    kind = "nothing" if not said["results"] else "finished" if said["ended"] is None else "partial"
    names = {"POINTS": here / "p.gpkg", "PREDICTIONS": here / "p.nc"}
    for name, path in names.items():
        if path.exists() != (name in said["results"]):
            faults.append(f"{path.name}: {'exists' if path.exists() else 'is missing'}, QGIS was told otherwise")
    if not faults and kind != "nothing":
        faults += damage(names["POINTS"], names["PREDICTIONS"])
        states = set(open_predictions(names["PREDICTIONS"]).rows["status"]) if not faults else set()
        kind = kind if "cancelled" in states else "finished"
    faults += [f"{path.name}: was left" for path in here.iterdir() if path.suffix not in (".gpkg", ".nc", ".parts")]
    shutil.rmtree(here)
    return Try(kind, faults, len(orphans), said["stopped"], said["ended"])


def damage(points: Path, predictions: Path) -> list[str]:
    """Say what is wrong with a layer and its predictions file; both have a row for every image."""
    found = []
    try:
        with sqlite3.connect(f"file:{points}?mode=ro", uri=True) as database:
            (whole,) = database.execute("PRAGMA integrity_check").fetchone()
            rows = database.execute("SELECT status, geom IS NOT NULL FROM points").fetchall()
        if whole != "ok" or len(rows) != IMAGES or any((status == "ok") != has for status, has in rows):
            found.append(f"{points.name}: {whole}, {len(rows)} rows")
    except sqlite3.Error as error:
        found.append(f"{points.name}: {error}")
    try:
        if len(open_predictions(predictions)) != IMAGES:
            found.append(f"{predictions.name}: not a row for every image")
    except GeoMvmfError as error:
        found.append(f"{predictions.name}: {error}")
    return found


def left_behind(folder: Path, *, but: int = 0) -> list[int]:
    """List the processes that come from the QGIS of this folder, by their environment; all but itself."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            marked = str(folder).encode() in (process / "environ").read_bytes()
        except OSError:  # gone, or another user's
            continue
        if marked and int(process.name) != but:
            found.append(int(process.name))
    return found


def _variables(folder: Path, python: str) -> dict[str, str]:
    """Variables of a QGIS without window, with a profile of its own; they mark its workers, too."""
    profile = folder / "profile"
    profile.mkdir(mode=0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own = dict.fromkeys(("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "QGIS_CUSTOM_CONFIG_PATH"), str(profile))
    paths = f"{ROOT / 'qgis_plugin'}:/usr/share/qgis/python/plugins"
    return {**kept, **own, "QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": paths, "GEO_MVMF_PYTHON": python}
