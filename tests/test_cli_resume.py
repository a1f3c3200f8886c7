"""Long predictions through the command line: bad rows, strictness, kills, interruptions, and going on."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from geo_mvmf import cli, predicting
from geo_mvmf.files import stores
from geo_mvmf.inputs.tables import read_image_table
from geo_mvmf.model.bundle import load_bundle, save_bundle
from geo_mvmf.model.untrained import untrained_bundle
from geo_mvmf.predictions import open_predictions

PART_ROWS = 4
BATCHES = ("--batch-size", 2)  # a sum over another batch may round differently


def run(*arguments):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def differences(path, other):
    """What differs between two predictions files: rows, mixing weights, the run."""
    first, second = open_predictions(path), open_predictions(other)
    found = [] if first.run == second.run else ["run"]
    if len(first) != len(second):
        return [*found, "number of rows"]
    if not first.rows.equals(second.rows):
        found.append("rows")
    one, two = first.store.pruned(), second.store.pruned()
    names = ("component", "log_weight", "offsets", "residual")
    return found + [
        name for name in names if not np.array_equal(getattr(one, name), getattr(two, name), equal_nan=True)
    ]


# --- fifty images, three of them bad -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fifty(tmp_path_factory):
    """One corrupt, one missing and one huge image among fifty."""
    folder = tmp_path_factory.mktemp("fifty")
    names = [f"{i:02d}.jpg" for i in range(50)]
    for i, name in enumerate(names):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)).save(folder / name)
    whole = (folder / names[7]).read_bytes()
    (folder / names[7]).write_bytes(whole[: len(whole) // 2])
    (folder / names[23]).unlink()
    Image.new("1", (8_001, 8_000)).save(folder / names[41].replace("jpg", "png"))
    names[41] = names[41].replace("jpg", "png")
    pd.DataFrame({"path": names}).to_csv(folder / "table.csv", index=False)
    return folder


BAD = {7: "unreadable", 23: "missing", 41: "too_large"}


def test_three_bad_images_among_fifty_cost_three_rows(fifty, bundle_path, tmp_path):
    result = run("predict", fifty / "table.csv", "--bundle", bundle_path, "--out", tmp_path / "a.nc")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "status: 47 ok, 1 unreadable, 1 missing, 1 too_large"
    rows = open_predictions(tmp_path / "a.nc").rows
    assert rows["path"].tolist() == pd.read_csv(fifty / "table.csv")["path"].tolist()
    assert {i: status for i, status in enumerate(rows["status"]) if status != "ok"} == BAD
    bad = rows.loc[list(BAD)]
    assert bad["longitude"].isna().all()
    for row in bad.itertuples():
        assert row.filename in row.message  # which file
    assert "truncated" in bad["message"][7] or "ends" in bad["message"][7]
    assert "no such file" in bad["message"][23]
    assert "8001 x 8000 pixels are more than the allowed 64000000" in bad["message"][41]
    assert rows.loc[rows["status"] == "ok", "longitude"].notna().sum() == 47


def test_strict_fails_and_leaves_nothing(fifty, bundle_path, tmp_path):
    for out in (tmp_path / "a.nc", tmp_path / "b.gpkg", tmp_path / "folder"):
        result = run("predict", fifty / "table.csv", "--bundle", bundle_path, "--out", out, "--strict")
        assert result.exit_code == 3
        assert "or do without strict (on the command line --strict)" in result.stderr
        assert "1 of 50 rows failed, and every row was required; the first is 23.jpg: missing: " in result.stderr
        assert list(tmp_path.iterdir()) == []


def test_strict_fails_of_what_only_reading_can_tell_too(fifty, bundle_path, tmp_path):
    pd.DataFrame({"path": ["00.jpg", "07.jpg", "41.png"]}).to_csv(tmp_path / "t.csv", index=False)
    command = ("predict", tmp_path / "t.csv", "--root", fifty, "--bundle", bundle_path, "--out", tmp_path / "a.nc")
    result = run(*command, "--strict")
    assert result.exit_code == 3
    assert "2 of 3 rows failed, and every row was required; the first is 07.jpg: unreadable: " in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_strict_is_content_when_all_is_well(fifty, bundle_path, tmp_path):
    out = tmp_path / "a.nc"
    assert run("predict", fifty / "00.jpg", "--bundle", bundle_path, "--out", out, "--strict").exit_code == 0
    assert open_predictions(out).rows["status"].tolist() == ["ok"]


# --- killed, interrupted, gone on with ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_table(bundle_path, tmp_path_factory):
    """Eighteen images, five parts, and their undisturbed prediction."""
    folder = tmp_path_factory.mktemp("long")
    for i in range(18):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "05.png").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicting, "PART_ROWS", PART_ROWS)
        command = ("predict", folder, "--bundle", bundle_path, "--out", folder.parent / "whole.nc")
        assert run(*command, *BATCHES).exit_code == 0
    return folder, folder.parent / "whole.nc"


def stopped_at(number, after, table, bundle_path, out):
    """Start a prediction in a process of its own and send it a signal when `after` images are in parts.

    The process waits there for the signal: it would be through before a busy machine sends one.
    """
    code = (
        f"from geo_mvmf import predicting, terminal; predicting.PART_ROWS = {PART_ROWS}\n"
        # a shell that started the tests in the background left Ctrl-C ignored
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "shown = terminal.Reporter.__call__\n"
        f"def show(self, event): shown(self, event); time.sleep(100 * (event.done == {after if number else -1}))\n"
        "terminal.Reporter.__call__ = show\n"
        "from geo_mvmf.cli import main; main(prog_name='geo-mvmf')"
    )
    command = ["--progress", "json", "predict", table, "--bundle", bundle_path, "--out", out, *BATCHES]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command), "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stderr:
            if number and f'"done": {after},' in line:
                process.send_signal(number)
                break
        rest = process.stderr.read()
    return process.returncode, rest


def state(folder):
    """Every part with what tells whether it was written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.glob("part-*.nc"))}


@pytest.mark.hard
def test_a_killed_prediction_goes_on_where_it_was(long_table, bundle_path, tmp_path):
    """SIGKILL in the second part, Ctrl-C in the third, SIGTERM in the fourth; then to the end."""
    table, whole = long_table
    out, parts = tmp_path / "a.nc", tmp_path / "a.nc.parts"
    seen = {}
    for number, after, code in ((signal.SIGKILL, 6, -9), (signal.SIGINT, 10, 130), (signal.SIGTERM, 14, 143)):
        returned, rest = stopped_at(number, after, table, bundle_path, out)
        assert returned == code, rest
        if code > 0:
            assert '"event": "cancelled"' in rest
            assert "interrupted, nothing is half-written; predict goes on when given again" in rest
        assert not out.exists()
        now = state(parts)
        assert seen.items() <= now.items(), "a part was predicted again"
        assert len(now) > len(seen)
        seen = now
    shutil.copytree(parts, tmp_path / "kept")
    returned, rest = stopped_at(None, 0, table, bundle_path, out)
    assert returned == 0, rest
    assert not parts.exists()
    assert differences(out, whole) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nc", "kept"]

    # the broken twins: a part counted twice in the place of another, and a part lost
    kept = tmp_path / "kept"
    count = len(stores.existing_parts(kept))
    assert count >= 3
    run_of = open_predictions(whole).run
    (part := kept / "part-000000.nc").rename(kept / "set-aside.nc")
    shutil.copy(kept / "part-000001.nc", part)
    stores.merge_parts(kept, tmp_path / "doubled.nc", run=run_of)
    assert differences(tmp_path / "doubled.nc", whole)
    (kept / f"part-{count - 1:06d}.nc").unlink()
    stores.merge_parts(kept, tmp_path / "lost.nc", run=run_of)
    assert "number of rows" in differences(tmp_path / "lost.nc", whole)


def begun(table, bundle, out, parts=2):
    """Predict some parts in this process, then stop as an interruption does."""
    folder = out.with_name(f"{out.name}.parts")
    job = predicting.predict_job(bundle, table, out=out, batch_size=2)
    next(event for event in job if len(state(folder)) >= parts)
    job.close()
    return state(folder)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(predicting, "PART_ROWS", PART_ROWS)


@pytest.mark.hard
def test_parts_of_another_bundle_are_not_used(small_parts, long_table, bundle_path, tmp_path):
    table, whole = long_table
    other = untrained_bundle(seed=5)
    save_bundle(other, tmp_path / bundle_path.name)  # the same name, other weights
    out = tmp_path / "a.nc"
    assert len(begun(read_image_table(table), other, out)) == 2
    assert run("predict", table, "--bundle", bundle_path, "--out", out, *BATCHES).exit_code == 0
    assert differences(out, whole) == []
    undisturbed = tmp_path / "other.nc"
    assert run("predict", table, "--bundle", tmp_path / bundle_path.name, "--out", undisturbed).exit_code == 0
    assert "log_weight" in differences(undisturbed, whole)  # the check would notice parts of the other bundle


@pytest.mark.parametrize(
    "changed", ["image_id", *(pytest.param(name, marks=pytest.mark.hard) for name in ("estimator", "claims", "column"))]
)
@pytest.mark.hard
def test_parts_of_another_question_are_not_used(small_parts, bundle_path, long_table, tmp_path, changed):
    folder, _ = long_table
    frame = pd.DataFrame({"path": [f"{i:02d}.png" for i in range(18)], "lon": 1.0, "lat": 2.0, "note": "a"})
    frame.to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "a.nc"
    root = ["--root", str(folder)]
    model = load_bundle(bundle_path, "cpu")
    assert begun(read_image_table(tmp_path / "t.csv", root=folder), model, out)
    options = {"estimator": ["--estimator", "mode"], "claims": ["--claims", "columns"]}.get(changed, [])
    if changed == "column":
        frame.assign(note="b").to_csv(tmp_path / "t.csv", index=False)
    if changed == "image_id":
        frame.assign(image_id=frame["path"] + "!").to_csv(tmp_path / "t.csv", index=False)
    command = ("predict", tmp_path / "t.csv", "--bundle", bundle_path, *root, *BATCHES)
    assert run(*command, "--out", out, *options).exit_code == 0
    assert run(*command, "--out", tmp_path / "fresh.nc", *options).exit_code == 0
    assert differences(out, tmp_path / "fresh.nc") == []


def test_a_damaged_part_is_predicted_again(small_parts, long_table, bundle_path, tmp_path):
    table, whole = long_table
    out = tmp_path / "a.nc"
    begun(read_image_table(table), load_bundle(bundle_path, "cpu"), out, parts=3)
    part = tmp_path / "a.nc.parts" / "part-000001.nc"
    content = bytearray(part.read_bytes())
    content[len(content) // 2 :] = b"\0" * (len(content) - len(content) // 2)
    part.write_bytes(content)
    assert len(state(part.parent)) == 3
    assert run("predict", table, "--bundle", bundle_path, "--out", out, *BATCHES).exit_code == 0
    assert differences(out, whole) == []


def test_an_interrupted_writing_of_layers_goes_on_from_the_predictions_file(long_table, bundle_path, tmp_path):
    table, _ = long_table
    command = ("predict", table, "--bundle", bundle_path, "--out", tmp_path / "a.csv")
    assert run(*command).exit_code == 0
    (tmp_path / "a.csv").unlink()  # as if the run had been killed before it was there
    before = (tmp_path / "a.nc").stat()
    assert run(*command).exit_code == 0
    assert (tmp_path / "a.csv").exists()
    assert (tmp_path / "a.nc").stat().st_ino == before.st_ino
    (tmp_path / "a.csv").unlink()
    refused = run(*command, "--estimator", "mode")  # another question: that file is not its answer
    assert refused.exit_code == 5
    assert "a.nc: exists already" in refused.stderr


@pytest.mark.hard
def test_a_run_that_was_killed_between_its_files_writes_those_that_are_missing(long_table, bundle_path, tmp_path):
    table, _ = long_table
    command = ("predict", table, "--bundle", bundle_path, "--out", tmp_path / "out")
    assert run(*command).exit_code == 0
    (tmp_path / "out" / "report.html").unlink()
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert "predictions.nc: predicted before" in result.stderr
    after = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    assert before.items() <= after.items()
    assert set(after) - set(before) == {"report.html"}
    refused = run(*command)  # nothing is missing
    assert refused.exit_code == 5
    assert "exists already" in refused.stderr


@pytest.mark.hard
def test_a_strict_run_goes_on_too_but_not_from_failed_rows(long_table, bundle_path, tmp_path):
    table, _ = long_table
    command = ("predict", table / "00.png", "--bundle", bundle_path, "--out", tmp_path / "a.csv", "--strict")
    assert run(*command).exit_code == 0
    (tmp_path / "a.csv").unlink()
    assert run(*command).exit_code == 0
    assert (tmp_path / "a.csv").exists()
    command = ("predict", table, "--bundle", bundle_path, "--out", tmp_path / "b.csv")
    assert run(*command).exit_code == 0
    (tmp_path / "b.csv").unlink()
    assert run(*command, "--strict").exit_code == 5
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.hard
def test_parts_of_an_image_that_was_replaced_are_not_used(small_parts, bundle_path, tmp_path):
    for i in range(6):
        Image.fromarray(np.full((36, 40, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    table, out = read_image_table(tmp_path), tmp_path / "a.nc"
    model = load_bundle(bundle_path, "cpu")
    assert begun(table, model, out, parts=1)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (36, 40, 3), np.uint8)).save(tmp_path / "0.png")
    assert run("predict", tmp_path, "--bundle", bundle_path, "--out", out, *BATCHES).exit_code == 0
    assert run("predict", tmp_path, "--bundle", bundle_path, "--out", tmp_path / "fresh.nc", *BATCHES).exit_code == 0
    assert differences(out, tmp_path / "fresh.nc") == []


@pytest.mark.hard
def test_nothing_is_replaced_unasked_and_all_of_it_when_asked(long_table, bundle_path, tmp_path):
    table, whole = long_table
    out = tmp_path / "a.nc"
    out.write_text("somebody's")
    command = ("predict", table, "--bundle", bundle_path, "--out", out, *BATCHES)
    assert run(*command).exit_code == 5
    assert out.read_text() == "somebody's"
    assert run(*command, "--overwrite").exit_code == 0
    assert differences(out, whole) == []


def test_an_interruption_of_any_command_is_130(monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("geo_mvmf.inputs.tables.read_image_table", interrupt)
    result = run("table", tmp_path)
    assert result.exit_code == 130
    assert result.stderr == "geo-mvmf: interrupted, nothing is half-written\n"  # this command does not go on
