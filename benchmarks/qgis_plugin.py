"""How long QGIS's start waits for the plugin: import and provider, each time in a fresh process of QGIS's own Python.

With `--cancels 100`: what cancelled predictions leave, and how long a cancellation takes; `--kills 30`: when the last
process of a killed QGIS is gone.
Needs QGIS (Debian: python3-qgis); QGIS_PYTHON names its interpreter where that is not /usr/bin/python3.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import qgis_cancel
import record

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("nothing", "partial", "finished")
_START = """
import os, sys, time
from qgis.core import QgsApplication
application = QgsApplication([], False)
application.initQgis()
import qgis.PyQt.QtGui, qgis.PyQt.QtCore  # QGIS has loaded these before any plugin
sys.path.insert(0, sys.argv[1])
began, cpu = time.perf_counter(), time.process_time()
from mvmf_locator import classFactory
plugin = classFactory(None)
plugin.initGui()
print(1000 * (time.perf_counter() - began), 1000 * (time.process_time() - cpu))
sys.stdout.flush()
os._exit(0)
"""


def start() -> tuple[float, float]:
    """Start QGIS's core once and load the plugin; milliseconds on the wall and of CPU."""
    python = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, "-c", _START, str(ROOT / "qgis_plugin")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**kept, "QT_QPA_PLATFORM": "offscreen"}
    )
    wall, cpu = done.stdout.split()[-2:]
    return float(wall), float(cpu)


def cancelled(tries: int, seed: int) -> None:
    """Cancel predictions in QGIS and write down what was left."""
    with tempfile.TemporaryDirectory() as folder:
        found = qgis_cancel.cancel(Path(folder), tries, seed=seed)
    kinds = [each.kind for each in found]
    asked = [each for each in found if each.stopped is not None and each.ended is not None]
    partial = [each for each in asked if each.kind == "partial"]
    faults = [fault for each in found for fault in each.faults]
    rows = [
        ["tries", len(found)],
        ["stopped before the first image, in between, asked too late", ", ".join(str(kinds.count(k)) for k in KINDS)],
        ["processes left", sum(each.orphans for each in found)],
        ["faults of files and results", f"{len(faults)} {'; '.join(faults[:3])}".strip()],
        ["from asking to the end of the predicting worker, s", record.spread([each.stopped for each in asked], 2)],
        ["the same with images in work, s", record.spread([each.stopped for each in partial], 2)],
        ["from asking to the end of the algorithm, s", record.spread([each.ended for each in asked], 2)],
        ["the same with images in work, and their points written, s", record.spread([e.ended for e in partial], 2)],
    ]
    text = (
        f"The plugin in QGIS's own Python predicts {qgis_cancel.IMAGES} images (batches of 4) with the sample's bundle"
        " and is cancelled at a moment drawn uniformly over the time that a whole prediction takes, for every second"
        " try over that with images in work; then layer and predictions file are opened, their rows counted, and"
        " processes looked for. A worker that does not stop in five seconds is killed. Median (range).\n\n"
    )
    record.write("qgis_cancel", "Cancelling in QGIS", text + record.table(["what", "figure"], rows))


def killed(tries: int, seed: int) -> None:
    """Kill QGIS while it predicts and write down when the worker had gone, too."""
    with tempfile.TemporaryDirectory() as folder:
        found = qgis_cancel.kill(Path(folder), tries, seed=seed)
    rows = [
        ["tries", len(found)],
        ["processes that stayed", sum(each == float("inf") for each in found)],
        ["from SIGKILL until the last process was gone, s (2 is demanded)", record.spread(found, 2)],
        ["later than 2 s", sum(each > 2.0 for each in found)],
    ]
    text = (
        "QGIS's own Python, in which the plugin predicts with the sample's bundle, is killed within 8 seconds after its"
        " worker was started: while that imports, loads the model, or has images in work. Median (range).\n\n"
    )
    record.write("qgis_kill", "Killing QGIS", text + record.table(["what", "figure"], rows))


def starts(repeats: int) -> None:
    """Load the plugin in fresh processes of QGIS and write down how long it took."""
    start()  # compiles the plugin, as its first start does
    found = [start() for _ in range(repeats)]
    subprocess.run([sys.executable, str(ROOT / "qgis_plugin" / "package.py")], check=True, capture_output=True)
    package = max((ROOT / "dist").glob("mvmf_locator-*.zip"), key=lambda path: path.stat().st_mtime)
    with zipfile.ZipFile(package) as file:
        unpacked = sum(entry.file_size for entry in file.infolist())
    rows = [
        ["import and provider, wall, ms (50 is the target)", record.spread([wall for wall, _ in found], 1)],
        ["import and provider, CPU, ms", record.spread([cpu for _, cpu in found], 1)],
        ["zip, kB (unpacked)", f"{package.stat().st_size / 1000:.0f} ({unpacked / 1000:.0f})"],
    ]
    text = f"{repeats} fresh processes; median (range).\n\n" + record.table(["what", "figure"], rows)
    record.write("qgis_plugin", "Start of the QGIS plugin", text)


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cancels", type=int, default=0, help="cancel so many predictions instead")
    parser.add_argument("--kills", type=int, default=0, help="kill so many QGIS instead")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.cancels:
        cancelled(options.cancels, options.seed)
    elif options.kills:
        killed(options.kills, options.seed)
    else:
        starts(options.repeats)


if __name__ == "__main__":
    main()
