"""kill -9 at any moment of training: the same command goes on and ends with the same bundle, bit by bit.

Real processes and real SIGKILLs. A fork server has the imports done, so that a run takes a second; children are killed
at random moments, while a checkpoint is being written, and while they resume.
"""

import dataclasses
import itertools
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from shapely.geometry import box

from geo_mvmf import durable
from geo_mvmf.model import checkpoint
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.release import released_path
from geo_mvmf.model.training import train

STEPS = 40

# Broken twins, run in the child before training. A source text, because the child knows the package but not this file.
TWINS = {
    "order from the running generator": """
from geo_mvmf.model import training
import numpy, random
training.epoch_order = lambda weights, seed, epoch: numpy.array(random.sample(range(len(weights)), len(weights)))
random.seed(0)
""",
    "checkpoint written in place, digest unchecked": """
from geo_mvmf.model import checkpoint, sealed
import contextlib, time, pathlib
@contextlib.contextmanager
def in_place(path, *, overwrite=False):
    yield pathlib.Path(path)
sealed.durable.replacing = in_place
original = pathlib.Path.open
class Slow:
    def __init__(self, file):
        self.file = file
    def write(self, part):
        half = len(part) // 2
        self.file.write(part[:half]); self.file.flush(); time.sleep(0.002); self.file.write(part[half:])
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
def slow_open(self, mode="r", **options):
    file = original(self, mode, **options)
    return Slow(file) if mode == "wb" and "checkpoint" in self.name else file
pathlib.Path.open = slow_open
checkpoint.KEPT = 1
""",
}


def _train(twin, config):
    source = twin + "\nfrom geo_mvmf.model.training import train_job\nfor _ in train_job(config): pass\n"
    process = CONTEXT.Process(target=exec, args=(source, {"config": config}))
    process.start()
    return process


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["geo_mvmf.model.training", "PIL.PngImagePlugin"])


@pytest.fixture(scope="module")
def config(make_photos):
    folder = make_photos(48)
    return TrainingConfig(
        stage="finetune",
        table=str(folder / "photos.csv"),
        out=str(folder / "unused"),
        backbone="chip_resnet10",
        backbone_width=8,
        crop=8,
        resize=8,
        num_components=12,
        initial_log_concentration=3.0,
        train_mean_directions=True,
        ema_decay=0.9,
        learning_rate=1e-3,
        batch_size=8,
        steps=STEPS,
        checkpoint_steps=1,
        validate_steps=5,
        validation_fraction=0.2,
        threads=1,
        device="cpu",
        augment=Augmentation(channel_gain=0.05, noise=0.01),
    )


def run_to_the_end(config, twin=""):
    process = _train(twin, config)
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def kill_when(process, moment):
    """SIGKILL as soon as the moment has come; tell whether the process still lived."""
    while process.is_alive() and not moment():
        time.sleep(0.0005)
    alive = process.is_alive()
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    return alive and process.exitcode == -signal.SIGKILL


def after(seconds):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def names_in(folder):
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def while_writing(folder, skip):
    """The moment at which a temporary file of ours is there, after `skip` steps have been seen."""
    seen = set()

    def moment():
        names = names_in(folder)
        seen.update(name for name in names if name.startswith("checkpoint-"))
        return len(seen) >= skip and any(name.startswith(".geo-mvmf-") for name in names)

    return moment


def has_checkpoint(folder):
    return lambda: any(name.startswith("checkpoint-") for name in names_in(folder))


def after_checkpoint(folder, seconds):
    """The moment so long after a checkpoint was first seen."""
    there, seen = has_checkpoint(folder), []

    def moment():
        if not seen and there():
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() > seen[0] + seconds

    return moment


def any_moment(config, rng):
    """Moments of three kinds, in turn; each is asked for when its process has just been started."""
    folder = Path(config.out)
    for number in itertools.count():
        if number % 3 == 0:  # some steps after the first checkpoint is there: in the middle of training
            yield after_checkpoint(folder, rng.uniform(0, 0.15))
        elif number % 3 == 1:
            yield while_writing(folder, skip=int(rng.integers(1, 4)))
        else:  # while it reads, resumes, takes its first steps
            yield after(rng.uniform(0, 0.6))


def digests_of_killed(config, kills, moments):
    """Kill so many times, then let it end. Gives the SHA-256 of every result that a run left.

    How far a run gets before its moment depends on the machine: one that came to its end first is begun anew.
    """
    result, digests, attempts = released_path(config), set(), 0
    while kills:
        attempts += 1
        assert attempts < 400, f"{kills} kills are still to hit: the runs end before their moments"
        process = _train("", config)
        if kill_when(process, next(moments)):
            kills -= 1
        else:
            assert process.exitcode == 0
            digests.add(durable.file_sha256(result))
            shutil.rmtree(config.out)
    assert run_to_the_end(config) == 0
    return digests | {durable.file_sha256(result)}


@pytest.fixture(scope="module")
def countries(config):
    """Stage backbone on the same photos: which of three countries, or none, each was taken in."""
    layer = gpd.GeoDataFrame(
        {"name": ["West", "East", "North"]},
        geometry=[box(-180, -60, 0, 50), box(0, -60, 180, 50), box(-180, 50, 180, 90)],
        crs="OGC:CRS84",
    )
    path = Path(config.table).parent / "countries.gpkg"
    layer.to_file(path)
    no_components = {"num_components": None, "initial_log_concentration": "auto", "train_mean_directions": False}
    return dataclasses.replace(config, stage="backbone", polygons=str(path), label_column="name", **no_components)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run = dataclasses.replace(config, out=str(tmp_path_factory.mktemp("undisturbed") / "run"))
    assert run_to_the_end(run) == 0
    return durable.file_sha256(f"{run.out}/bundle.safetensors")


@pytest.mark.hard
def test_a_child_gives_the_bits_of_this_process(config, undisturbed, tmp_path):
    run = dataclasses.replace(config, out=str(tmp_path / "run"), checkpoint_steps=1000)
    assert train(run).digest
    assert durable.file_sha256(f"{run.out}/bundle.safetensors") == undisturbed


@pytest.mark.hard
def test_six_kills_and_the_bundle_is_the_same(config, undisturbed, tmp_path):
    run = dataclasses.replace(config, out=str(tmp_path / "run"))
    assert digests_of_killed(run, 6, any_moment(run, np.random.default_rng(1))) == {undisturbed}
    assert not [path.name for path in Path(run.out).iterdir() if path.name.startswith(".geo-mvmf-")]


@pytest.mark.hard
@pytest.mark.timeout(1200)
def test_many_kills_of_stage_head_and_its_feature_cache(config, tmp_path):
    config = dataclasses.replace(config, stage="head", ema_decay=0.0, augment=Augmentation())
    first, whole, run = (dataclasses.replace(config, out=str(tmp_path / name)) for name in ("first", "whole", "run"))
    assert run_to_the_end(first) == 0  # it may have waited for the fork server's imports
    start = time.monotonic()
    assert run_to_the_end(whole) == 0
    seconds, rng = time.monotonic() - start, np.random.default_rng(7)
    # spread over reading, features, merging, training and the release
    moments = (after(rng.uniform(0.02, 1.0) * seconds) for _ in itertools.count())
    assert digests_of_killed(run, 24, moments) == {durable.file_sha256(f"{whole.out}/bundle.safetensors")}


@pytest.mark.hard
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_many_kills_of_a_head_with_the_fused_update(config, tmp_path, kind):
    """In float32 to the bits of the plain optimiser, even; in bfloat16 with the same rounding at random."""
    config = dataclasses.replace(config, stage="head", fused_optimiser=kind, augment=Augmentation())
    whole, run = (dataclasses.replace(config, out=str(tmp_path / name)) for name in ("whole", "run"))
    expected = train(whole).digest
    plain = train(dataclasses.replace(whole, out=str(tmp_path / "plain"), fused_optimiser="none")).digest
    assert (plain == expected) == (kind == "float32")
    digests = digests_of_killed(run, 12, any_moment(run, np.random.default_rng(11)))
    assert digests == {durable.file_sha256(f"{whole.out}/bundle.safetensors")}


@pytest.mark.hard
@pytest.mark.timeout(1200)
def test_many_kills_of_stage_backbone(countries, tmp_path):
    whole, run = (dataclasses.replace(countries, out=str(tmp_path / name)) for name in ("whole", "run"))
    assert run_to_the_end(whole) == 0
    digests = digests_of_killed(run, 24, any_moment(run, np.random.default_rng(13)))
    assert digests == {durable.file_sha256(released_path(whole))}


@pytest.mark.hard
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(5))
def test_many_kills_and_the_bundle_is_the_same(config, undisturbed, tmp_path, seed):
    run = dataclasses.replace(config, out=str(tmp_path / "run"))
    assert digests_of_killed(run, 24, any_moment(run, np.random.default_rng(100 + seed))) == {undisturbed}


def test_at_most_one_interval_is_lost(config, tmp_path):
    """What a kill leaves is the last checkpoint or the one before, never less."""
    run = dataclasses.replace(config, out=str(tmp_path / "run"))
    process = _train("", run)
    assert kill_when(process, while_writing(Path(run.out), skip=3))
    newest, damaged = checkpoint.read_newest(run.out)
    assert newest.step >= 2
    assert damaged == []


@pytest.mark.hard
@pytest.mark.parametrize("stage", ["config", "countries"])
def test_a_global_generator_is_caught(request, stage, tmp_path):
    """Broken twin: two runs, one killed, differ."""
    digests = []
    for number in range(2):
        run = dataclasses.replace(request.getfixturevalue(stage), out=str(tmp_path / f"run-{number}"))
        twin = TWINS["order from the running generator"]
        if number:
            process = _train(twin, run)
            # after some steps of the third epoch, so that the generator has run on
            assert kill_when(process, lambda: Path(run.out, "checkpoint-0000000012.safetensors").exists())  # noqa: B023
        assert run_to_the_end(run, twin) == 0
        digests.append(durable.file_sha256(released_path(run)))
    assert digests[0] != digests[1]


@pytest.mark.hard
def test_a_writer_that_does_not_rename_is_caught(config, tmp_path):
    """Broken twin: written in place, a kill leaves a torn checkpoint and nothing before it."""
    run = dataclasses.replace(config, out=str(tmp_path / "run"))
    twin = TWINS["checkpoint written in place, digest unchecked"]
    for number in range(6):
        process = _train(twin, run)
        started = has_checkpoint(Path(run.out))
        while process.is_alive() and not started():
            time.sleep(0.001)
        kill_when(process, after(0.01 + 0.007 * number))
        paths = checkpoint.checkpoint_paths(run.out)
        torn = [path for path in paths if _is_torn(path)]
        if torn:
            return
    pytest.fail("the twin was not caught in six kills")


def _is_torn(path):
    try:
        checkpoint.read_checkpoint(path)
    except checkpoint.BadBundleError:
        return True
    return False
