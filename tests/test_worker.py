"""The worker: requests in, events out; cancelled, it leaves what is done and goes on from there."""

import json
import subprocess
import sys

import geopandas
import pandas as pd
import pytest

from geo_mvmf import events, folder_lock, predicting, worker
from geo_mvmf.files import store_parts, stored_predictions, stores
from geo_mvmf.model import bundle as bundles
from geo_mvmf.predictions import open_predictions
from geo_mvmf.progress import CancelledError
from geo_mvmf.terminal import Reporter

COMMAND = (sys.executable, "-X", "utf8", "-I", "-u", "-m", "geo_mvmf.worker")
ENDS = ("result", "error", "cancelled")


def line(task, protocol=1, **params):
    return json.dumps({"protocol": protocol, "task": task, "params": {k: as_json(v) for k, v in params.items()}})


def as_json(value):
    return value if value is None or isinstance(value, (bool, int, float, list)) else str(value)


def answered(text, command=COMMAND):
    """Events, stderr and exit code of a worker that is given text and whose input stays open while it works."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(text)
        process.stdin.flush()
        said = process.stdout.read()
        errors = process.stderr.read().decode()
    return said, errors, process.returncode


def read(said):
    found = [json.loads(each) for each in said.splitlines()]
    assert said.endswith(b"\n")
    assert said.isascii()
    assert max(map(len, said.splitlines())) < 64_000
    assert [event["event"] in ENDS for event in found] == [False] * (len(found) - 1) + [True]
    return found


def here(task, check=None, **params):
    """Answer a request in this process, where everything heavy is imported already."""
    said = []
    report = Reporter("json", said.append, check)
    try:
        worker.run(*worker.understood(line(task, **params).encode()), report)
    except CancelledError as cancelled:
        report.cancelled(cancelled)
    return [json.loads(each) for each in said]


# --- the stream --------------------------------------------------------------------------------------------------


def test_hello_is_first_and_one_result_is_last(bundle_path):
    said, errors, code = answered(f"{line('info', file=bundle_path)}\n".encode())
    found = read(said)
    hello = found[0]
    assert (hello["event"], hello["protocol"], hello["python"]) == ("hello", 1, sys.version.split()[0])
    assert (found[-1]["event"], found[-1]["facts"]["num_components"], code) == ("result", 6, 0)
    assert errors == ""


NOISE = """
import os, sys, ctypes
from geo_mvmf import worker
from geo_mvmf.model import bundle_format
read = bundle_format.read_header
def noisy(path):
    print("a stray print")
    os.write(1, b'{"event": "result", "by": "os.write"}\\n')
    ctypes.CDLL(None).puts(b"a line of C")
    ctypes.CDLL(None).fflush(None)
    print("to sys.__stdout__", file=sys.__stdout__, flush=True)
    assert sys.stdin.read() == ""  # nobody eats the word cancel
    return read(path)
bundle_format.read_header = noisy
sys.argv = ["worker"]
"""


def test_noise_does_not_break_the_stream(bundle_path):
    request = f"{line('info', file=bundle_path)}\n".encode()
    said, errors, code = answered(request, (sys.executable, "-I", "-c", f"{NOISE}\nsys.exit(worker.main())"))
    assert [event["event"] for event in read(said)] == ["hello", "result"]
    assert code == 0
    for noise in ("a stray print", "os.write", "a line of C", "to sys.__stdout__"):
        assert noise in errors


def test_noise_breaks_a_stream_that_is_not_private(bundle_path):
    """The broken twin: a worker that writes where everybody does."""
    twin = f"{NOISE}\nworker._private_streams = lambda: (0, worker._Voice(1))\nsys.stdin = open(os.devnull)\n"
    request = f"{line('info', file=bundle_path)}\n".encode()
    said, _, _ = answered(request, (sys.executable, "-I", "-c", f"{twin}\nsys.exit(worker.main())"))
    assert b"a stray print" in said
    with pytest.raises((ValueError, AssertionError)):
        read(said)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the input ended before a request came"),
        (b'{"protocol": 1, "task": "env"}', "ended in the middle of a request: "),
        (b'{"protocol": 1, "ta', "ended in the middle of a request: "),
        (b"hello\n", "is not JSON"),
        (b'{"protocol": 9, "task": "env", "params": {}}\n', "this geo_mvmf speaks protocol 1"),
        (b'{"protocol": 1, "task": "info", "params": {"file": "a", "frob": 1}}\n', "'frob' is unknown"),
    ],
)
def test_what_cannot_be_answered_is_one_error(text, message):
    done = subprocess.run(COMMAND, input=text, capture_output=True, check=False)
    hello, error = read(done.stdout)
    assert (hello["event"], error["event"], done.returncode) == ("hello", "error", 2)
    assert message in error["message"]
    assert (error["code"], error["detail"], done.stderr) == ("bad_input", "", b"")


def test_an_error_of_a_command_has_its_exit_code():
    said, errors, code = answered(f"{line('info', file='no/such.safetensors')}\n".encode())
    assert [event.get("code") for event in read(said)] == [None, "model_missing"]
    assert (code, errors) == (4, "")


def test_people_are_told_what_it_is():
    for words, code in ((["--help"], 0), (["predict", "a"], 2)):
        done = subprocess.run([*COMMAND, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert done.stdout + done.stderr == f"{worker.ABOUT}\n"


# --- what tasks say ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def album(bundle_path, tmp_path_factory):
    """Seven pictures, one of them broken, in a table that names one more; and their prediction."""
    folder = tmp_path_factory.mktemp("worker")
    from PIL import Image

    for i in range(7):
        Image.new("RGB", (40, 36), (30 * i, 90, 200 - 20 * i)).save(folder / f"{i} é.png")
    (folder / "6 é.png").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    rows = [f"{i} é.png,{i},{40 + i}" for i in (0, 1, 2, 6, 3, 9, 4, 5)]
    (folder / "t.csv").write_text("\n".join(["path,longitude,latitude", *rows]) + "\n", encoding="utf-8")
    found = here("predict", source=folder / "t.csv", bundle=bundle_path, out=folder / "whole.nc", batch_size=2)
    assert found[-1]["event"] == "result"
    return folder


def test_predict_tells_images_counts_and_outputs(album, bundle_path, tmp_path):
    out = tmp_path / "a.gpkg"
    found = here("predict", source=album / "t.csv", bundle=bundle_path, out=out, levels="0.5", batch_size=2)
    kinds = {event["event"] for event in found}
    assert kinds == {"log", "progress", "item_error", "result"}
    bad = [(event["path"], event["code"]) for event in found if event["event"] == "item_error"]
    assert bad == [("9 é.png", "missing"), ("6 é.png", "unreadable")]
    done = [event["done"] for event in found if event.get("stage") == "predict"]
    assert (done, {event["total"] for event in found if event.get("stage") == "predict"}) == ([1, 3, 5, 7, 8, 8], {8})
    assert next(event["stage"] for event in found if event["event"] == "progress") == "load"
    result = found[-1]
    assert result["outputs"] == {"predictions": str(tmp_path / "a.nc"), "layers": str(out)}
    assert (result["counts"]["ok"], result["counts"]["failed"]) == (6, 2)
    assert result["counts"]["median_area_90_km2"] > 0
    assert result["message"].startswith("status: 6 ok, 1 ")


def test_every_task_names_its_outputs(album, bundle_path, tmp_path):
    store, zones = album / "whole.nc", tmp_path / "zones.geojson"
    geopandas.GeoDataFrame(
        {"name": ["north"]},
        geometry=geopandas.GeoSeries.from_wkt(["POLYGON ((0 0, 90 0, 90 60, 0 60, 0 0))"]),
        crs=4326,
    ).to_file(zones, driver="GeoJSON")
    wanted = {  # task: params, outputs, counts
        "density": (
            {"predictions": store, "out": "d.tif", "resolution": 10},
            {"density": "d.tif", "level": "d_level.tif"},
        ),
        "points": ({"predictions": store, "out": "p.geojson"}, {"layers": "p.geojson"}),
        "regions": ({"predictions": store, "out": "r.gpkg", "image_ids": ["1 é.png"]}, {"layers": "r.gpkg"}),
        "zones": ({"predictions": store, "out": "z.csv", "polygons": zones}, {"table": "z.csv"}),
        "fuse": ({"predictions": store, "out": "f.nc", "max_mass_error": 0.05}, {"predictions": "f.nc"}),
        "evaluate": ({"predictions": store, "out": "e.csv"}, {"table": "e.csv"}),
        "table": ({"source": album / "t.csv", "out": "t.gpkg"}, {"table": "t.gpkg"}),
        "info": ({"file": store}, {}),
    }
    for task, (params, outputs) in wanted.items():
        given = {key: tmp_path / value if key == "out" else value for key, value in params.items()}
        result = here(task, **given)[-1]
        assert result["event"] == "result", (task, result)
        assert result["outputs"] == {name: str(tmp_path / path) for name, path in outputs.items()}
        assert all((tmp_path / path).exists() for path in outputs.values())
        assert bool(result["counts"]) != (task == "info")
        assert ("facts" in result) == (task == "info")
        assert result["message"]


def code_of(task, **params):
    with pytest.raises(Exception) as raised:  # any: what it becomes is compared
        here(task, **params)
    return events.explain(raised.value).code


def test_errors_of_every_kind_have_their_codes(album, bundle_path, tmp_path, monkeypatch):
    asked = {"source": album / "t.csv", "bundle": bundle_path, "out": tmp_path / "a.nc"}
    assert code_of("predict", **{**asked, "source": tmp_path / "no.csv"}) == "bad_input"
    assert code_of("predict", **{**asked, "bundle": album / "t.csv"}) == "model_missing"
    assert code_of("predict", **asked, device="cuda:77") == "device"
    assert code_of("predict", **{**asked, "out": album / "whole.nc"}) == "output"
    assert code_of("predict", **{**asked, "out": f"{tmp_path}/{'n' * 300}.nc"}) == "output"
    assert code_of("predict", **asked, strict=True) == "bad_input"
    with folder_lock.holding(tmp_path / "a.nc.parts"):
        assert code_of("predict", **asked) == "locked"

    def fails(error):
        def forward(*_):
            raise error

        monkeypatch.setattr(bundles.Bundle, "predict", forward)
        return code_of("predict", **asked)

    assert fails(MemoryError()) == "oom"
    assert fails(RuntimeError("CUDA error: no kernel image is available")) == "device"
    assert fails(ValueError("shapes do not fit")) == "internal"
    assert not (tmp_path / "a.nc").exists()


# --- cancelled ---------------------------------------------------------------------------------------------------


def stop_after(done):
    """Somebody who cancels once so many events of a job were said."""
    seen = []

    def check():
        seen.append(1)
        if len(seen) >= done:
            raise CancelledError

    return check


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(predicting, "PART_ROWS", 3)


def counted(monkeypatch):
    """Sizes of the batches that the network is given from now on."""
    seen, predict = [], bundles.Bundle.predict
    monkeypatch.setattr(
        bundles.Bundle, "predict", lambda self, images: seen.append(len(images)) or predict(self, images)
    )
    return seen


def rows_of(path):
    return open_predictions(path).rows


def rows_of_part(path):
    components = store_parts.read_components(path.parent, stored_predictions.components_of_part(path))
    return stores.open_part(path, components).rows


@pytest.mark.parametrize("after", [3, *(pytest.param(after, marks=pytest.mark.hard) for after in (1, 2, 4, 5))])
def test_a_cancelled_prediction_leaves_what_is_done_and_goes_on(
    small_parts, album, bundle_path, tmp_path, monkeypatch, after
):
    asked = {"source": album / "t.csv", "bundle": bundle_path, "out": tmp_path / "a.gpkg", "batch_size": 2}
    found = here("predict", stop_after(after), **asked)
    store = tmp_path / "a.nc"
    assert found[-1]["outputs"] == {"predictions": str(store), "layers": str(tmp_path / "a.gpkg")}
    rows, whole = rows_of(store), rows_of(album / "whole.nc")
    left = rows["status"] == "cancelled"
    assert (found[-1]["event"], found[-1]["done"], found[-1]["total"]) == ("cancelled", 8 - left.sum(), 8)
    assert 0 < left.sum() < 8
    # what was reached is as ever, what was not has nothing but its reason
    pd.testing.assert_frame_equal(rows[~left], whole[~left], rtol=1e-4)
    assert rows.loc[left, ["longitude", "area_90_km2", "error_km"]].isna().all(axis=None)
    assert rows.loc[left, "message"].str.contains("cancelled before it was reached").all()
    points = geopandas.read_file(tmp_path / "a.gpkg", layer="points")
    assert points["status"].tolist() == rows["status"].tolist()
    assert points.geometry.isna().tolist() == (rows["status"] != "ok").tolist()
    # maps can be made of it
    assert here("regions", predictions=store, out=tmp_path / "r.gpkg")[-1]["event"] == "result"

    # the same request goes on: no whole part is predicted again, and nothing differs from an undisturbed run
    kept = (tmp_path / "a.nc.parts").glob("part-*.nc")
    known = [name for part in kept for name in rows_of_part(part).query("status == 'ok'")["image_id"]]
    assert len(known) >= (~left).sum() - 5  # of two parts, the one that was begun and one that was not written
    seen = counted(monkeypatch)
    again = here("predict", **asked, levels="0.5")
    assert sum(seen) == 6 - len(known)
    assert len([event for event in again if event["event"] == "item_error"]) == 2
    pd.testing.assert_frame_equal(rows_of(store), whole, rtol=1e-4)
    assert "cancelled" not in open_predictions(store).run
    assert not (tmp_path / "a.nc.parts").exists()
    assert geopandas.read_file(tmp_path / "a.gpkg", layer="points")["status"].tolist() == whole["status"].tolist()
    assert len(geopandas.read_file(tmp_path / "a.gpkg", layer="regions")) == 6
    assert code_of("predict", **asked) == "output"  # finished: it is not replaced unasked


@pytest.mark.hard
def test_a_cancelled_prediction_is_not_taken_for_another(small_parts, album, bundle_path, tmp_path):
    """It is replaced unasked by its own request alone."""
    asked = {"source": album / "t.csv", "bundle": bundle_path, "out": tmp_path / "a.nc", "batch_size": 2}
    assert here("predict", stop_after(3), **asked)[-1]["event"] == "cancelled"
    before = (tmp_path / "a.nc").read_bytes()
    assert code_of("predict", **asked, estimator="mode") == "output"
    assert code_of("predict", **{**asked, "source": album / "0 é.png"}) == "output"
    assert (tmp_path / "a.nc").read_bytes() == before
    assert here("predict", stop_after(1), **asked)[-1]["event"] == "cancelled"  # and may be cancelled again
    assert here("predict", **asked)[-1]["event"] == "result"
    pd.testing.assert_frame_equal(rows_of(tmp_path / "a.nc"), rows_of(album / "whole.nc"), rtol=1e-4)


def test_a_part_with_cancelled_rows_is_never_gone_on_with(small_parts, album, bundle_path, tmp_path):
    """A kill while what is left was being written: such parts have the right size, and rows that lie."""
    asked = {"source": album / "t.csv", "bundle": bundle_path, "out": tmp_path / "a.nc", "batch_size": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # what is left stays
        here("predict", stop_after(1), **asked)
    parts = tmp_path / "a.nc.parts"
    assert any((rows_of_part(part)["status"] == "cancelled").any() for part in parts.glob("part-*.nc"))
    (tmp_path / "a.nc").unlink()
    assert here("predict", **asked)[-1]["event"] == "result"
    pd.testing.assert_frame_equal(rows_of(tmp_path / "a.nc"), rows_of(album / "whole.nc"), rtol=1e-4)


def test_a_strict_prediction_that_is_cancelled_leaves_nothing(small_parts, album, bundle_path, tmp_path):
    (tmp_path / "t.csv").write_text("path\n" + "\n".join(f"{i} é.png" for i in range(5)), encoding="utf-8")
    asked = {"source": tmp_path / "t.csv", "root": album, "bundle": bundle_path, "out": tmp_path / "a.gpkg"}
    found = here("predict", stop_after(2), **asked, strict=True, batch_size=2)
    assert (found[-1]["event"], found[-1]["outputs"]) == ("cancelled", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nc.parts", "t.csv"]
