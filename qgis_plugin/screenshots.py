"""Take the pictures of docs/qgis.md anew, from a real QGIS window: `python3 qgis_plugin/screenshots.py [docs]`.

Needs Debian's qgis, python3-qgis, qgis-providers, xvfb and xauth, and the environment that `make demo` makes (or the
one that GEO_MVMF_PYTHON names). QGIS gets a profile of its own in a temporary folder, a screen that nobody sees, and
screenshots_in_qgis.py to run there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "sample_data"
SCREEN = "1440x960x24"
TIMEOUT_S = 300
PICTURES = ("qgis_predicted.png", "qgis_dialog.png", "qgis_density.png")
LARGEST = 300_000  # bytes of a picture

# As after a first start with the plugin installed.
SETTINGS = """[PythonPlugins]
mvmf_locator=true
processing=true

[qgis]
checkVersion=false
showTips=false
"""


def take(folder: Path) -> list[Path]:
    """Start QGIS, let it take the pictures, and put them into a folder."""
    program = next((path for path in map(shutil.which, ("qgis.bin", "qgis")) if path), None)
    if program is None or shutil.which("xvfb-run") is None:
        raise SystemExit("QGIS or xvfb-run is missing. Debian: apt install qgis python3-qgis qgis-providers xvfb xauth")
    with tempfile.TemporaryDirectory(prefix="album-") as name:
        work = Path(name)
        _make_profile(work / "profiles" / "default" / "QGIS" / "QGIS3.ini")
        shutil.copytree(SAMPLE, work / "sample_data")  # pictures show paths: none of this machine's
        command = ["xvfb-run", "--auto-servernum", "--server-args", f"-screen 0 {SCREEN}", program, "--nologo"]
        command += ["--noversioncheck", "--profiles-path", str(work), "--code"]
        command += [str(HERE / "screenshots_in_qgis.py")]
        log = work / "log.txt"
        code = _run(command, _environment(work), log)
        made = [work / name for name in PICTURES if (work / name).exists()]
        if code or len(made) != len(PICTURES):
            text = log.read_text(encoding="utf-8", errors="replace")[-4000:]
            raise SystemExit(f"QGIS ended with {code} after {len(made)} of {len(PICTURES)} pictures:\n{text}")
        return [_place(path, folder) for path in made]


def _run(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Run a program and all that it starts, for so long; give its exit code."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        try:
            return process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a window that hangs, and the screen it is on


def _make_profile(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(SETTINGS, encoding="utf-8")


def _environment(work: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GDAL", "PROJ", "QT"))}
    own = os.environ.get("GEO_MVMF_PYTHON") or HERE.parent / ".venv"
    return {
        **kept,
        "PATH": "/usr/bin:/bin",  # the Python inside QGIS takes its library from the first python3 there
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "LC_ALL": "C.UTF-8",
        "QGIS_PLUGINPATH": str(HERE),
        "GEO_MVMF_PYTHON": str(own),
        "GEO_MVMF_SCREENSHOTS": str(work),
        "XDG_RUNTIME_DIR": str(work),
        "TMPDIR": str(work / "profiles"),  # else QGIS marks every layer as lost when it ends
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _place(path: Path, folder: Path) -> Path:
    size = path.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{path.name}: {size} bytes, more than {LARGEST}: make the window smaller")
    return Path(shutil.copyfile(path, folder / path.name))


if __name__ == "__main__":
    for picture in take(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "docs"):
        print(picture, picture.stat().st_size)
