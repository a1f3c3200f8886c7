"""The package where Python is as on Windows: what is not there is not used, and what is refused there is not tried."""

import subprocess
import sys
from pathlib import Path

import pytest

WINDOWS = (sys.executable, "-X", "warn_default_encoding", str(Path(__file__).with_name("windows_like.py")))


def on_windows(folder, code, *arguments, libraries="all"):
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    return subprocess.Popen(
        [*WINDOWS, libraries, str(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


DOORS = """
import os, sys
from pathlib import Path
import geo_mvmf.cli, geo_mvmf.worker
from geo_mvmf import durable, environment, folder_lock
from geo_mvmf.errors import LockedError

folder = Path(sys.argv[1])
for text in ("old", "new"):
    durable.write_text(folder / "a.txt", text, overwrite=True)
    with durable.replacing_folder(folder / "f", overwrite=True) as temporary:
        (temporary / text).touch()
for name in ("kept", "left"):
    with folder_lock.holding(folder / name):
        (folder / name / "result").touch()
        try:
            with folder_lock.holding(folder / name):
                print("two hold one folder")
        except LockedError as error:
            print(str(error).partition(": ")[2])
        if name == "left":
            (folder / name / "result").unlink()  # and not .lock, which is open
left = durable.temporary_name(folder / "b.txt")
left.touch()
environment._TORCH = "raise SystemExit('Ægir')"
print(ascii(environment._torch()[0]))
print(durable.sweep(folder), sorted(path.name for path in folder.rglob("*") if path != left))
"""
HELD = "another process is working here; wait for it to end, or choose another folder"


def test_files_folders_and_locks(tmp_path):
    (tmp_path / "out").mkdir()
    said, errors = on_windows(tmp_path, DOORS, tmp_path / "out", libraries="few").communicate()
    assert errors == ""
    assert said.splitlines() == [
        HELD,
        HELD,
        r"'not usable: \xc6gir'",
        "[] ['.lock', 'a.txt', 'f', 'kept', 'new', 'result']",
    ]


ALL = """
import importlib, pkgutil, sys
from pathlib import Path
import geo_mvmf
from geo_mvmf import predicting, progress
from geo_mvmf.model import features

for module in pkgutil.walk_packages(geo_mvmf.__path__, "geo_mvmf."):
    if module.name != "geo_mvmf.model.triton_epilogues":  # Triton is for Linux
        importlib.import_module(module.name)

folder, bundle = Path(sys.argv[1]), geo_mvmf.load_bundle(sys.argv[2])
(folder / "table.csv").write_text("path\\nphotos\\\\image_000.png\\nphotos\\\\image_001.png\\n", encoding="utf-8")
table = geo_mvmf.read_image_table(folder / "table.csv")
job = predicting.predict_job(bundle, table, out=folder / "album.nc")
next(job)
print("held", flush=True)
sys.stdin.readline()
predictions = progress.run(job)
predictions.save(folder / "copy.nc")
for _ in range(2):  # the second time over the first
    predictions.write(folder / "points.gpkg", levels=(0.5,), overwrite=True)
    predictions.write_density(folder / "density.tif", geo_mvmf.Grid.globe(10.0), combine="mean", overwrite=True)
caches = []  # what they have mapped cannot be removed
for rows in (table.iloc[:1], table):
    caches.append(progress.run(features.cache_features(bundle.backbone, rows, folder / "cache", spec=bundle.spec)))
print(predictions.to_geodataframe()["status"].tolist(), [len(cache.features) for cache in caches])
"""
REFUSED = """
import sys
from geo_mvmf import folder_lock
with folder_lock.holding(sys.argv[1]):
    pass
"""


@pytest.mark.hard
def test_a_prediction_and_what_is_made_of_it(tmp_path, bundle_path, make_album):
    out = tmp_path / "out"
    make_album(out / "photos", 2)
    process = on_windows(tmp_path, ALL, out, bundle_path)
    assert process.stdout.readline() == "held\n", process.communicate()[1]
    other = on_windows(out, REFUSED, out / "album.nc.parts", libraries="few")
    assert f"LockedError: {out / 'album.nc.parts'}: {HELD}" in other.communicate()[1]
    said, errors = process.communicate("go on\n")
    assert said == "['ok', 'ok'] [1, 2]\n", errors
    files = sorted(path.name for path in out.iterdir() if path.is_file())
    assert files == ["album.nc", "copy.nc", "density.qml", "density.tif", "density_level.qml", "density_level.tif",
                     "points.gpkg", "script.py", "table.csv"]  # fmt: skip
    assert not (out / "album.nc.parts").exists()
