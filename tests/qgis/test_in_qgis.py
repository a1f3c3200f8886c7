"""The plugin inside QGIS, with workers that misbehave: one clear message each, nothing left behind."""

import os
import random
from pathlib import Path

import pytest

IDS = {
    "predictphotos", "predictraster", "densityraster", "credibleregions", "zoneprobabilities", "fusepredictions",
    "cutchips", "trainmodel", "calibrate", "evaluate", "checkenvironment",
}  # fmt: skip
ARGUMENTS = ["-X", "utf8", "-I", "-u", "-m", "geo_mvmf.worker"]


def check(**more):
    return {"algorithm": "geomvmf:checkenvironment", "parameters": {}, **more}


def regions(tmp_path, **parameters):
    given = {"PREDICTIONS": "p.nc", "LEVELS": "0.5", "OUTPUT": str(tmp_path / "r.gpkg"), **parameters}
    return {"algorithm": "geomvmf:credibleregions", "parameters": given}


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"


def test_every_algorithm_is_described(probe, fake_python):
    seen = probe({"do": "registry"}, fake_python("good"))
    assert set(seen["algorithms"]) == IDS
    assert seen["memory"] is False
    assert (seen["vector"], seen["raster"], seen["warning"]) == (["gpkg", "geojson"], ["tif"], "")
    for about in seen["algorithms"].values():
        assert len(about["help"]) > 300
        assert "not a proof" in about["help"]
        assert "km" in about["help"]
        assert len(about["tags"]) > 4
        assert about["icon"]
        assert about["able"] == [True, ""]
    outputs = {name: set(about["outputs"]) for name, about in seen["algorithms"].items()}
    assert {"POINTS", "REGIONS", "PREDICTIONS", "ZONES", "COUNT", "FAILED", "MEDIAN_AREA_90"} == outputs[
        "predictphotos"
    ]
    for name in ("densityraster", "credibleregions", "zoneprobabilities", "fusepredictions"):
        assert {"PREDICTIONS", "IMAGE_IDS"} <= set(seen["algorithms"][name]["parameters"]), name


def test_the_table_of_a_layer_has_iso_dates_and_paths_within_its_root(probe, fake_python):
    (row,), root = probe({"do": "table"}, fake_python("good"))
    assert (row["properties"]["path"], root) == ("a.jpg", "/photos/sub")
    moments = {name: row["properties"][name] for name in ("day", "at", "local", "utc", "no")}
    assert moments == {
        "day": "2026-01-02",
        "at": "03:04:05",
        "local": "2026-01-02T03:04:05",
        "utc": "2026-01-02T03:04:05Z",
        "no": None,
    }


@pytest.mark.hard
def test_without_a_python_it_says_what_to_do_and_spoils_no_rich_text(probe):
    seen = probe({"do": "registry"}, "/no/<img src=x>/python")
    able = {tuple(about["able"]) for name, about in seen["algorithms"].items() if name != "checkenvironment"}
    ((is_able, problem),) = able
    assert not is_able
    assert "&lt;img src=x&gt;" in problem
    assert "<" not in problem + seen["warning"]
    assert "Check environment" in seen["warning"]
    (checked,) = probe({"do": "run", "steps": [check()]}, "/no/such/python")
    assert "/no/such/python" in checked["error"]
    assert "uv tool install" in checked["error"]


FAILURES = {
    "garbage": "not the protocol",
    "no_hello": "not the protocol",
    "endless_line": "not the protocol",
    "half_line": "in the middle of a line",
    "silent": "exit code 0 and gave no result",
    "mute": "exit code 0 and gave no result",
    "newer": "speaks protocol 7",
    "crash": "crashed",
    "killed": "memory ran out",
    "error": "out of memory",
}


@pytest.mark.hard
def test_workers_that_misbehave_get_one_clear_message_each(probe, fake_python, asked):
    steps = [check(python=str(fake_python(behaviour))) for behaviour in FAILURES]
    seen = probe({"do": "run_each", "steps": steps})
    for behaviour, answer in zip(FAILURES, seen, strict=True):
        assert FAILURES[behaviour] in answer["error"], (behaviour, answer)
        assert answer["error"].count("\n") <= 1
        assert answer["seconds"] < 20
    assert [each for each in asked() if is_alive(each["pid"])] == []


@pytest.mark.hard
def test_unknown_events_are_logged_once_and_noise_stays_plain(probe, fake_python):
    steps = [check(python=str(fake_python(behaviour))) for behaviour in ("unknown", "older", "noisy")]
    unknown, older, noisy = probe({"do": "run_each", "steps": steps})
    assert [answer["error"] for answer in (unknown, older, noisy)] == ["", "", ""]
    assert sum("gossip" in text for _, text in unknown["said"]) == 1
    assert len([text for way, text in noisy["said"] if way == "pushConsoleInfo" and "<script>" in text]) == 2000


@pytest.mark.hard
def test_cancelled_workers_stop_or_are_killed(probe, fake_python, asked):
    steps = [
        check(python=str(fake_python(behaviour)), cancel_after=1.0) for behaviour in ("polite", "deaf", "lingering")
    ]
    polite, deaf, lingering = probe({"do": "run_each", "steps": steps})
    assert [answer["error"] for answer in (polite, deaf, lingering)] == ["", "", ""]
    assert deaf["seconds"] > 5  # it had its time
    assert [each for each in asked() if is_alive(each["pid"])] == []


PIECES = [
    "--strict",
    "-x",
    "@file",
    "\n",
    '"',
    "'",
    "<img/src=x/onerror=alert(1)>",
    "\\",
    "$(id)",
    "ž",
    "%s",
    "{}",
    ";",
    "&amp;",
]


@pytest.mark.hard
def test_the_argument_list_never_changes_and_the_environment_is_clean(probe, fake_python, asked, tmp_path):
    random.seed(0)
    hostile = ["".join(random.choices(PIECES, k=random.randint(1, 6))) for _ in range(500)]
    steps = [regions(tmp_path, LEVELS=text, IMAGE_IDS=text) for text in hostile]
    poison = dict.fromkeys(("PYTHONEXECUTABLE", "GDAL_DRIVER_PATH", "GDAL_DATA", "LD_LIBRARY_PATH"), "/nonsense")
    seen = probe({"do": "run", "steps": steps}, fake_python("quick"), timeout=250, **poison)
    requests = asked()
    assert len(requests) == len(seen) == 500
    for text, request, answer in zip(hostile, requests, seen, strict=True):
        assert answer["error"] == ""
        assert request["arguments"] == ARGUMENTS
        assert request["request"]["params"].get("levels", "") == text.strip()
        assert not set(poison) & set(request["environment"])
        # what may be shown as rich text holds nothing foreign, not even the stage that the worker names
        assert {said for way, said in answer["said"] if way == "setProgressText"} <= {"working ..."}


@pytest.mark.hard
def test_messages_of_modules_without_qgis_are_translated(probe):
    assert probe({"do": "translate"}) == [
        "««the setting geo_mvmf/python» names '/no': no Python and no environment is there»",
        "«the worker «ended with exit code 3» and gave no result»«; its last words: boom»",
        "«Run Check environment.»",
    ]


@pytest.mark.hard
def test_it_runs_as_a_task(probe, fake_python):
    """In the background, as the toolbox runs it, while the window goes on."""
    seen = probe({"do": "task", "steps": [check()]}, fake_python("good"))
    ((ok, results),) = seen["ended"]
    assert ok
    assert "torch: 9.9" in results["DIAGNOSTICS"]
    assert seen["turns"] > 2


@pytest.mark.hard
def test_loaded_and_unloaded_a_hundred_times_nothing_stays(probe, fake_python):
    seen = probe({"do": "reload", "times": 100}, fake_python("good"))
    assert seen == [[1, 1, 0, 0]] * 100


@pytest.mark.hard
def test_the_page_of_options_keeps_what_is_chosen(probe, fake_python):
    python = fake_python("good")
    seen = probe({"do": "options", "python": str(python)})
    assert seen["kept"] == {"python": str(python), "bundles": "", "device": "cuda:1"}
    assert str(python) in seen["shown"][0]
    assert seen["shown"][1] == 0  # plain text
