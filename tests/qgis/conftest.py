"""The plugin's pure modules, QGIS's own Python, and workers that only pretend."""

import functools
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "qgis_plugin" / "mvmf_locator"
PROBE = Path(__file__).with_name("plugin_probe.py")
FAKE = Path(__file__).with_name("fake_worker.py")

sys.path.insert(0, str(PLUGIN.parent))  # its package imports no qgis until QGIS asks for the plugin


@functools.cache
def qgis_python():
    """The Python that QGIS belongs to; Debian and Ubuntu: the system's own."""
    for candidate in (os.environ.get("QGIS_PYTHON"), "/usr/bin/python3"):
        if candidate and Path(candidate).exists():
            command = [candidate, "-I", "-c", "import qgis.core, processing"]
            path = {
                "PYTHONPATH": "/usr/share/qgis/python/plugins",
                "QT_QPA_PLATFORM": "offscreen",
                "HOME": "/nonexistent",
            }
            if (
                subprocess.run([candidate, "-c", command[-1]], capture_output=True, env=path, check=False).returncode
                == 0
            ):
                return candidate
    return None


def qgis_process():
    """The program, not Debian's wrapper, which always fails."""
    return next((path for path in ("/usr/bin/qgis_process.bin", "/usr/bin/qgis_process") if Path(path).exists()), None)


def missing(what):
    """Skip, or fail where CI must have it."""
    reason = f"{what} is not installed (Debian: python3-qgis, qgis-providers, qgis; or set QGIS_PYTHON)"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, but CI must have it")
    pytest.skip(reason)


def environment(tmp_path, python, **more):
    """Variables of a QGIS without window and with a profile of its own, which asks the worker in `python`."""
    profile = tmp_path / "profile"
    profile.mkdir(mode=0o700, exist_ok=True)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GDAL", "PROJ", "GEO_"))
    }
    return {
        **kept,
        "QT_QPA_PLATFORM": "offscreen",
        "XDG_RUNTIME_DIR": str(profile),
        "XDG_CONFIG_HOME": str(profile),  # of settings that have no profile
        "QGIS_CUSTOM_CONFIG_PATH": str(profile),
        "QGIS_PLUGINPATH": str(PLUGIN.parent),
        "GEO_MVMF_PYTHON": str(python),
        "PYTHONDONTWRITEBYTECODE": "1",
        **{name: str(value) for name, value in more.items()},
    }


@pytest.fixture
def qgis_is_there():
    """Skip where QGIS is missing."""
    return qgis_python() or missing("QGIS")


@pytest.fixture
def probe(tmp_path):
    """Do something in QGIS's Python: run(request, python, **variables) -> what was seen."""

    def run(request, python="", *, timeout=120, **variables):
        interpreter = qgis_python() or missing("QGIS")
        (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [interpreter, str(PROBE), str(tmp_path / "request.json"), str(tmp_path / "seen.json")]
        own = environment(tmp_path, python, PYTHONPATH=f"{PLUGIN.parent}:/usr/share/qgis/python/plugins", **variables)
        done = subprocess.run(command, capture_output=True, text=True, env=own, check=False, timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture
def process(tmp_path):
    """Run qgis_process as a shell user would: run(algorithm, parameters, python, **variables) -> results, log, code."""

    def run(algorithm, parameters, python=sys.executable, *, timeout=280, **variables):
        program = qgis_process() or missing("qgis_process")
        own = environment(tmp_path, python, **variables)
        if not (tmp_path / "profile" / "enabled").exists():
            command = [program, "plugins", "enable", "mvmf_locator"]
            sound = environment(tmp_path, python)  # `variables` may be those that QGIS cannot start with
            subprocess.run(command, env=sound, capture_output=True, check=True, timeout=60)
            (tmp_path / "profile" / "enabled").touch()
        words = [
            f"--{name}={value}"
            for name, values in parameters.items()
            for value in (values if isinstance(values, list) else [values])
        ]
        command = [program, "run", algorithm, *words]
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False, timeout=timeout)
        results = dict(
            line.split(":\t", 1)
            for line in done.stdout.rpartition("\nResults\n")[2].splitlines()
            if ":\t" in line and done.returncode == 0
        )
        return results, done.stdout + done.stderr, done.returncode

    return run


@pytest.fixture
def launch(tmp_path):
    """Start qgis_process and give it while it runs: launch(algorithm, parameters, python, log) -> Popen."""

    def start(algorithm, parameters, python, log):
        program = qgis_process() or missing("qgis_process")
        own = environment(tmp_path, python)
        command = [program, "plugins", "enable", "mvmf_locator"]
        subprocess.run(command, env=own, capture_output=True, check=True, timeout=60)
        words = [f"--{name}={value}" for name, value in parameters.items()]
        return subprocess.Popen([program, "run", algorithm, *words], env=own, stdout=log, stderr=log)

    return start


@pytest.fixture
def fake_python(tmp_path):
    """Make a program that takes the interpreter's place and behaves as `behaviour` says."""

    def make(behaviour):
        path = tmp_path / "bin of a fake" / f"python-{behaviour}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -I -u "{FAKE}" {behaviour} "{tmp_path}" "$@"\n', encoding="utf-8"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


@pytest.fixture
def asked(tmp_path):
    """What fake workers were started with and asked for, one dictionary for each."""

    def read():
        lines = (tmp_path / "asked.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    return read
