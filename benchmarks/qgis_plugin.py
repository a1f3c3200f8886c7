"""How long QGIS's start waits for the plugin: import and provider, each time in a fresh process of QGIS's own Python.

Needs QGIS (Debian: python3-qgis); QGIS_PYTHON names its interpreter where that is not /usr/bin/python3.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import record

ROOT = Path(__file__).resolve().parents[1]
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


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
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


if __name__ == "__main__":
    main()
