"""Nonsense in the variables of QGIS's own process: the worker gets none of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data"
BUNDLE = SAMPLE / "relief.safetensors"
POISONS = ("PYTHONPATH", "PYTHONEXECUTABLE", "PROJ_LIB", "GDAL_DATA", "LD_LIBRARY_PATH")
MORE = ("PROJ_DATA", "GDAL_DRIVER_PATH", "PIP_TARGET", "VIRTUAL_ENV", "SSL_CERT_FILE")
pytestmark = [pytest.mark.hard, pytest.mark.timeout(900)]


@pytest.mark.parametrize("names", [*((name,) for name in POISONS), POISONS + MORE], ids=" ".join)
def test_a_qgis_that_was_started_with_nonsense_finds_a_sound_worker(process, names):
    poison = dict.fromkeys(names, "/nonsense")
    results, log, code = process("geomvmf:checkenvironment", {}, **poison)
    assert code == 0, log
    assert results["PYTHON"] == sys.executable
    assert "not usable" not in results["DIAGNOSTICS"] + log
    assert "gdal: 3." in log
    assert "proj: 9." in log


def test_a_qgis_that_was_started_with_nonsense_predicts(process, tmp_path):
    photo = tmp_path / "photos" / "a.jpg"
    photo.parent.mkdir()
    shutil.copyfile(SAMPLE / "chips" / "chip_00.jpg", photo)
    outs = {"POINTS": tmp_path / "p.gpkg", "PREDICTIONS": tmp_path / "p.nc", "REGIONS": tmp_path / "r.gpkg"}
    wanted = {"FOLDER": photo.parent, "BUNDLE": BUNDLE, **outs}
    results, log, code = process("geomvmf:predictphotos", wanted, **dict.fromkeys(POISONS + MORE, "/nonsense"))
    assert code == 0, log
    assert (results["COUNT"], results["FAILED"]) == ("1", "0")


def test_with_pythonhome_qgis_s_own_python_does_not_start(process):
    """So there is no plugin of anybody's: what the documentation says, and why it is set in a running QGIS below."""
    results, log, code = process("geomvmf:checkenvironment", {}, PYTHONHOME="/nonsense")
    assert code != 0
    assert not results
    assert "No module named 'encodings'" in log


def test_everything_poisoned_in_a_running_qgis(probe):
    steps = [{"algorithm": "geomvmf:checkenvironment", "parameters": {}}]
    poison = dict.fromkeys(("PYTHONHOME", *POISONS, *MORE), "/nonsense")
    (answer,) = probe({"do": "run", "steps": steps, "environment": poison}, sys.executable)
    assert answer["error"] == ""
    assert "not usable" not in answer["results"]["DIAGNOSTICS"]
    assert "gdal: 3." in answer["results"]["DIAGNOSTICS"]


@pytest.mark.parametrize(("name", "flag"), [("PYTHONHOME", "-u"), ("LD_LIBRARY_PATH", "-I")])
def test_a_worker_that_inherits_would_fail(name, flag, tmp_path):
    """The broken twins: without -I, and with -I alone, the same interpreter does not work."""
    (tmp_path / "libz.so.1").write_bytes(b"no library")
    command = [sys.executable, flag, "-c", "import zlib"]
    assert subprocess.run(command, env={}, capture_output=True, check=False).returncode == 0
    assert subprocess.run(command, env={name: str(tmp_path)}, capture_output=True, check=False).returncode != 0
