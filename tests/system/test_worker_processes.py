"""The worker as a process: cancelled at any moment, it ends and leaves whole files; without its parent, it goes.

Real processes, real signals. Seconds are recorded, never asserted: a busy machine makes them longer.
"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import geopandas
import numpy as np
import psutil
import pytest
from PIL import Image

from geo_mvmf.predictions import open_predictions

pytestmark = pytest.mark.hard

WORKER = (sys.executable, "-X", "utf8", "-I", "-u", "-m", "geo_mvmf.worker")
IMAGES = 14
TRIES = 100
ENDS = ("result", "error", "cancelled")
PATIENCE = 60  # seconds; a hang, not slowness, takes longer

# A worker whose imports were done by a fork server: a try takes half a second.
CHILD = """
import os, sys
for name, flags, number in ((asked, os.O_RDONLY, 0), (said, os.O_WRONLY, 1)):
    descriptor = os.open(name, flags)
    os.dup2(descriptor, number)
    os.close(descriptor)
os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
sys.argv = ["worker"]
from geo_mvmf import predicting, worker
predicting.PART_ROWS = 4
os._exit(worker.main())
"""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["geo_mvmf.worker", "geo_mvmf.predicting", "geo_mvmf.model.bundle", "pyogrio"])


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    for i in range(IMAGES):
        noise = np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02d}.png")
    (folder / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def request(task, **params):
    asked = {"protocol": 1, "task": task, "params": {k: v if isinstance(v, int) else str(v) for k, v in params.items()}}
    return f"{json.dumps(asked)}\n".encode()


class Forked:
    """A worker of the fork server, its input and its output."""

    def __init__(self, folder, text):
        names = {name: str(folder / name) for name in ("asked", "said")}
        for name in names.values():
            with contextlib.suppress(FileExistsError):
                os.mkfifo(name)
        self.process = CONTEXT.Process(target=exec, args=(CHILD, {**names, "errors": str(folder / "errors.txt")}))
        self.process.start()
        self.input = Path(names["asked"]).open("wb", buffering=0)  # noqa: SIM115 (closed by the test)
        self.output = Path(names["said"]).open("rb")  # noqa: SIM115
        self.input.write(text)

    def end(self):
        """Events up to the last, and the exit code."""
        events = [json.loads(line) for line in self.output]
        self.output.close()
        self.input.close()
        self.process.join(PATIENCE)
        return events, self.process.exitcode


def is_whole(folder):
    """Names in a folder, but for what the next writer sweeps; every layer opens and says what its predictions say.

    Two files cannot be replaced at once: between the two the layer is the one that a cancelled run left before.
    """
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".geo-mvmf"))
    if "a.gpkg" in names:
        with contextlib.closing(sqlite3.connect(folder / "a.gpkg")) as base:
            assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        statuses = geopandas.read_file(folder / "a.gpkg", layer="points")["status"].tolist()
        expected = open_predictions(folder / "a.nc").rows["status"].tolist()
        assert len(statuses) == len(expected)
        differ = {said for said, now in zip(statuses, expected, strict=True) if said != now}
        assert differ <= ({"cancelled"} if is_old(folder) else set())
    return names


def is_old(folder):
    """Whether the layer was made before the predictions file: the same request makes it anew."""
    return (folder / "a.gpkg").stat().st_mtime_ns < (folder / "a.nc").stat().st_mtime_ns


def test_100_cancellations_leave_whole_files_and_no_process(album, bundle_path, tmp_path, record_property):
    """At any event, by the word, by the word and the end of the input, or by a signal."""
    chance = random.Random(0)
    seconds, ends, partial, gone_on = [], [], 0, 0
    out, pipes = tmp_path / "out", tmp_path / "pipes"
    pipes.mkdir()
    text = request("predict", source=album, bundle=bundle_path, out=out / "a.gpkg", batch_size=1)
    for number in range(TRIES):
        worker = Forked(pipes, text)
        for _ in range(chance.randint(1, IMAGES + 6)):
            worker.output.readline()
        began = time.monotonic()
        way = number % 3
        if way == 2:
            with contextlib.suppress(ProcessLookupError):  # it may have ended
                os.kill(worker.process.pid, signal.SIGTERM)
        else:
            with contextlib.suppress(BrokenPipeError):
                worker.input.write(b"cancel\n")
        if way == 1:
            worker.input.close()
        events, code = worker.end()
        seconds.append(time.monotonic() - began)
        said = (tmp_path / "pipes" / "errors.txt").read_text()
        assert code in (0, -signal.SIGTERM), (events[-1:], said)  # -15: after its last word
        assert not psutil.pid_exists(worker.process.pid)
        ends += [event["event"] for event in events if event["event"] in ENDS]
        names = is_whole(out) if out.exists() else []
        if "a.nc" in names and "cancelled" in open_predictions(out / "a.nc").run:
            partial += 1
            gone_on += bool((out / "a.nc.parts").exists())
        elif "a.gpkg" in names and not is_old(out):  # it was done before it was cancelled: begin anew
            for name in ("a.gpkg", "a.nc"):
                (out / name).unlink()
    assert "error" not in ends
    assert partial >= TRIES // 5
    assert gone_on == partial
    events, code = Forked(pipes, text).end()
    assert (events[-1]["event"], code, events[-1]["counts"]["ok"]) == ("result", 0, IMAGES - 1)
    assert is_whole(out) == sorted(path.name for path in out.iterdir()) == ["a.gpkg", "a.nc"]
    record_property("cancelled", f"{ends.count('cancelled')} of {TRIES}, {partial} with partial files")
    record_property("seconds from asking to the end", f"median {np.median(seconds):.2f}, most {max(seconds):.2f}")
    print(
        f"{ends.count('cancelled')} cancelled, {partial} partial; median {np.median(seconds):.2f} s, {max(seconds):.2f}"
    )


PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.pid, flush=True)
child.stdin.write(sys.argv[1].encode() + b"\\n")
child.stdin.flush()
for line in child.stdout:
    print(line.decode(), end="", flush=True)
"""
STUBBORN = """
import ctypes, os, sys
from geo_mvmf import worker
from geo_mvmf.model import bundle_format
def stubborn(path):
    print("computing", file=sys.stderr, flush=True)
    {forever}
bundle_format.read_header = stubborn
sys.argv = ["worker"]
"""
COMPUTES = """
    while True:
        try:
            sum(range(10**6))
        except BaseException:
            pass
"""
HOLDS_THE_LOCK = "ctypes.PyDLL(None).sleep(600)"  # of Python: none of the worker's threads runs
TWIN = "worker._watch = lambda *_: None\nworker.parent_watch.guard = lambda *_: None\n"
UNGUARDED = "worker.parent_watch.guard = lambda *_: None\n"


def stubborn(forever, twin=""):
    return (sys.executable, "-I", "-c", f"{STUBBORN.format(forever=forever)}\n{twin}\nos._exit(worker.main())")


def family(mark):
    """Processes that run with a mark in their environment, whoever their parent is now; zombies have ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FAMILY") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def busy(processes):
    """So many processes that compute."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def seconds_without_parent(command, text, moment, patience=PATIENCE):
    """Kill a worker's parent once its output holds a text, or after seconds; None where somebody stays."""
    asked, mark = text.decode().strip(), f"{os.getpid()}-{time.monotonic_ns()}"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, asked, *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FAMILY": mark},
    )
    with parent:
        parent.stdout.readline()
        if isinstance(moment, str):
            next(line for line in parent.stdout if moment in line)
        else:
            time.sleep(moment)
        was_alive = len(family(mark)) > 1
        parent.kill()
        began = time.monotonic()
        while left := [process for process in family(mark) if process.pid != parent.pid]:
            if time.monotonic() - began > patience:
                for process in left:
                    process.kill()
                return None
            time.sleep(0.02)
        assert was_alive or not isinstance(moment, str)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("moment", "load"),
    [(moment, 0) for moment in ("hello", 0.3, 0.8, 1.5, 2.5, '"load"', '"predict"', '"export"')]
    + [(moment, 4) for moment in ("hello", 0.8, 1.5, '"load"')],
)
def test_a_worker_without_its_parent_goes(album, bundle_path, tmp_path, record_property, moment, load):
    text = request("predict", source=album, bundle=bundle_path, out=tmp_path / "a.gpkg", levels="0.5,0.9", batch_size=1)
    with busy(load):
        seconds = seconds_without_parent(WORKER, text, moment)
    record_property("seconds", seconds)
    print(f"{moment}, {load} busy: gone after {seconds:.2f} s")
    assert seconds is not None
    if (tmp_path / "a.nc").exists():
        assert len(open_predictions(tmp_path / "a.nc")) == IMAGES
    if (tmp_path / "a.gpkg").exists():
        assert len(geopandas.read_file(tmp_path / "a.gpkg", layer="points")) == IMAGES


FEW = "import os, sys\nfrom geo_mvmf import region_job, worker\nregion_job.WORTH_PROCESSES = 2\nsys.argv = ['worker']\n"


@pytest.mark.parametrize("moment", [0.5, 1.0, 2.0, 3.0, '"regions"'])
def test_processes_of_a_worker_go_with_it(album, bundle_path, tmp_path, record_property, moment):
    """Those that make regions: while they start, while they compute."""
    out = tmp_path / "a.nc"
    asked = request("predict", source=album, bundle=bundle_path, out=out)
    with subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(asked)
        process.stdin.flush()
        process.stdout.read()
    text = request("regions", predictions=out, out=tmp_path / "r.gpkg", workers=2)
    command = (sys.executable, "-I", "-c", f"{FEW}os._exit(worker.main())")
    seconds = seconds_without_parent(command, text, moment)
    record_property("seconds", seconds)
    print(f"{moment}: gone after {seconds:.2f} s")
    assert seconds is not None


def test_a_process_that_asks_torch_goes(record_property):
    seconds = seconds_without_parent(WORKER, request("env"), 0.5)
    record_property("seconds", seconds)
    assert seconds is not None


@pytest.mark.parametrize("forever", [COMPUTES, HOLDS_THE_LOCK])
def test_a_worker_that_computes_for_ever_goes_too(bundle_path, record_property, forever):
    """Even where nothing can interrupt the command; and broken twins, which do not watch, stay."""
    text = request("info", file=bundle_path)
    seconds = seconds_without_parent(stubborn(forever), text, "load" if forever is COMPUTES else 1.5)
    record_property("seconds", seconds)
    assert seconds is not None
    print(f"gone after {seconds:.2f} s")
    twin = stubborn(forever, TWIN if forever is COMPUTES else UNGUARDED)
    assert seconds_without_parent(twin, text, 1.5, patience=4) is None


def test_a_command_that_cannot_be_interrupted_is_ended_after_cancel(bundle_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(stubborn(COMPUTES), **pipes) as process:
        process.stdin.write(request("info", file=bundle_path) + b"not a word it knows\n")
        process.stdin.flush()
        process.stderr.readline()  # it computes
        said = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.stdin.write(b"cancel\n")
        process.stdin.close()
        said += [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert said[0]["event"] == "hello"
    assert "this line was not understood: b'not a word it knows'" in [event.get("message") for event in said][1]
    beats = [event for event in said if event["event"] == "progress"]
    assert len(beats) >= 2  # nothing was said: a heartbeat
    assert {(event["stage"], event["done"], event["total"]) for event in beats} == {("load", 0, 0)}
    assert [event["event"] for event in said if event["event"] in ENDS] == ["cancelled"]


def test_nobody_who_reads_is_no_reason_to_stay(album, bundle_path, tmp_path):
    """The output is full, or closed; then the input ends."""
    for close in (True, False):
        with subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdin.write(request("predict", source=album, bundle=bundle_path, out=tmp_path / "a.nc"))
            process.stdin.flush()
            if close:
                process.stdout.close()
            time.sleep(0.5)
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
