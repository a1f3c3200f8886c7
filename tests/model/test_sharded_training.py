"""Training by several processes: the model of one process, one of them writes, and any number of them goes on."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from geo_mvmf import durable
from geo_mvmf.errors import UsageError
from geo_mvmf.model import checkpoint, ranks, training
from geo_mvmf.model.bundle import load_bundle
from geo_mvmf.model.configuration import TrainingConfig

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["geo_mvmf.model.training", "PIL.PngImagePlugin"])  # as the tests of kills ask for
SCRIPT = Path(__file__).with_name("rank_of_training.py")


@pytest.fixture(scope="module")
def photos(make_photos):
    folder = make_photos(53)
    Path(folder, "07.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def config(photos, tmp_path):
    def make(name, **options):
        usual = {
            "stage": "head", "table": str(photos / "photos.csv"), "out": str(tmp_path / name),
            "cache_dir": str(tmp_path / "features"), "backbone": "chip_resnet10", "backbone_width": 8, "crop": 8,
            "resize": 8, "num_components": 18, "initial_log_concentration": 3.0, "learning_rate": 1e-2,
            "train_mean_directions": True, "train_log_concentrations": True, "batch_size": 9, "steps": 12,
            "log_steps": 1, "checkpoint_steps": 4, "validate_steps": 4, "validation_fraction": 0.2, "threads": 1,
            "device": "cpu", "gradient_clip": 0.5, "ema_decay": 0.5,
        }  # fmt: skip
        return usual | options

    return make


def start(config, size, changes=()):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [{"config": config, "rank": rank, "size": size, "port": port, "changes": changes} for rank in range(size)]
    arguments = [(str(SCRIPT), {"JOB": json.dumps(job)}) for job in jobs]
    processes = [CONTEXT.Process(target=runpy.run_path, args=each) for each in arguments]
    for process in processes:
        process.start()
    return processes


def codes(processes):
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def trained(config, size, changes=()):
    assert codes(start(config, size, changes)) == [0] * size
    return load_bundle(Path(config["out"], "bundle.safetensors"), device="cpu")


def log_of(config):
    return [json.loads(line) for line in Path(config["out"], "log.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(config):
    found = {}
    for record in log_of(config):
        if record["event"] in ("step", "validation"):
            found[record["event"], record["step"]] = record["loss" if record["event"] == "step" else "nll"]
    return found


def differences(one, other, *, resumed=None):
    """By how much losses differ at most, and weights of the head."""
    a, b = losses(one), losses(other)
    for each in (a, b):  # what is logged is a mean over steps; the first one of a resumed run is of one step
        each.pop(("step", resumed), None)
    assert a.keys() == b.keys()
    heads = [load_bundle(Path(each["out"], "bundle.safetensors"), device="cpu").head for each in (one, other)]
    pairs = zip(*(head.state_dict().values() for head in heads), strict=True)
    return max(abs(a[key] - b[key]) for key in a), max(float((x - y).abs().max()) for x, y in pairs)


def test_two_processes_train_the_model_of_one(config):
    one, two = config("one"), config("two", checkpoint_seconds=1e-9)
    training.train(TrainingConfig(**one))
    bundle = trained(two, 2, ["keep_own_clock", "tell_often"])
    of_losses, of_weights = differences(one, two)
    assert of_losses < 1e-4
    assert of_weights < 1e-3
    assert len(bundle.head.weight) == 18
    assert bundle.metadata["training"]["best"]["step"] in (4, 8, 12)
    records = log_of(two)
    assert [record["event"] for record in records].count("step") == 12  # one of them writes
    assert (records[0]["event"], records[0]["ranks"]) == ("start", 2)
    assert losses(two)["step", 12] < losses(two)["step", 1]


def stopped(config, size, changes=()):
    """Kill one process when the second checkpoint is there, and give the exit codes."""
    processes = start(config, size, changes)
    wait_for(Path(config["out"], "checkpoint-0000000008.safetensors"), *processes)
    os.kill(processes[-1].pid, signal.SIGKILL)
    return codes(processes)


def wait_for(path, *processes):
    while not path.exists():
        lives = (p.poll() is None if isinstance(p, subprocess.Popen) else p.is_alive() for p in processes)
        assert any(lives), "they ended before"
        time.sleep(0.0005)


LONG = {"steps": 400, "checkpoint_steps": 8, "validate_steps": 100, "log_steps": 50}


@pytest.mark.hard
def test_a_killed_process_ends_all_and_the_run_goes_on_bit_by_bit(config):
    whole, killed = config("whole", **LONG), config("killed", **LONG)
    trained(whole, 2)
    assert stopped(killed, 2) == [7, -signal.SIGKILL]
    message = Path(killed["out"] + "-error-0.txt").read_text(encoding="utf-8")
    assert message.startswith("TrainingError: rank 0 of 2: another process of this run ended or is silent (")
    assert message.endswith("start all of them again: a run goes on from its last checkpoint")
    trained(killed, 2)
    assert log_of(killed)[-1]["event"] == "end"
    resumed = [record for record in log_of(killed) if record["event"] == "resume"]
    assert [(record["step"] >= 8, record["bit_identical"]) for record in resumed] == [(True, True)]
    digests = {durable.file_sha256(Path(each["out"], "bundle.safetensors")) for each in (whole, killed)}
    assert len(digests) == 1


FUSED = {"fused_optimiser": "float32", "gradient_clip": None}


@pytest.mark.parametrize(
    ("before", "after", "options"),
    [(2, 1, {})]
    + [pytest.param(*each, marks=pytest.mark.hard) for each in ((1, 3, {}), (3, 2, {}), (2, 1, FUSED), (1, 2, FUSED))],
)
@pytest.mark.hard
def test_another_number_of_processes_goes_on(config, before, after, options):
    whole, other = config("whole", **options), config("other", **options)
    training.train(TrainingConfig(**whole))
    stop_at(other, before)
    trained(other, after)
    resumed = [record for record in log_of(other) if record["event"] == "resume"]
    assert [(record["step"], record["ranks"], record["bit_identical"]) for record in resumed] == [(8, after, False)]
    of_losses, of_weights = differences(whole, other, resumed=9)
    assert of_losses < 1e-4
    assert of_weights < 1e-3


def stop_at(config, size):
    """Leave a run at its checkpoint of step 8."""
    trained(config, size)
    folder = Path(config["out"])
    (folder / "bundle.safetensors").unlink()
    assert [path.name[-14:-12] for path in checkpoint.checkpoint_paths(folder)] == ["08", "04"]


@pytest.mark.hard
def test_parts_dealt_wrongly_are_caught(config):
    """Broken twin: a resumed run whose ranks all take the first components."""
    whole, other = config("whole"), config("other")
    training.train(TrainingConfig(**whole))
    stop_at(other, 2)
    trained(other, 2, ["deal_first_part"])
    assert differences(whole, other, resumed=9)[0] > 1e-3


@pytest.mark.hard
def test_a_backbone_is_trained_by_the_rows_of_all(config):
    options = {"stage": "finetune", "learning_rate": 1e-3}
    one, two, twin = (config(name, **options) for name in ("one", "two", "twin"))
    trained(one, 1, ["freeze_statistics"])
    trained(two, 2, ["freeze_statistics"])
    trained(twin, 2, ["freeze_statistics", "keep_own_gradients"])
    assert differences(one, two)[0] < 1e-3
    assert differences(one, twin)[0] > 1e-2


@pytest.mark.hard
def test_backbones_stay_the_same_on_all(config):
    run = config("run", stage="finetune", learning_rate=1e-3)
    trained(run, 2)
    each = [dict(np.load(f"{run['out']}-backbone-{rank}.npz")) for rank in range(2)]
    assert each[0].keys() == each[1].keys()
    for name, values in each[0].items():
        np.testing.assert_array_equal(values, each[1][name], err_msg=name)


@pytest.mark.hard
def test_the_features_stay_until_all_have_mapped_them(config):
    trained(config("run"), 2, ["map_late"])


@pytest.mark.hard
def test_a_machine_that_cannot_read_the_features_ends_the_run(config):
    run = config("run")
    assert codes(start(run, 2, ["see_no_features"])) == [7, 7]
    told = [Path(f"{run['out']}-error-{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    assert told[1].startswith("TrainingError: rank 1 of 2: the features that rank 0 cached cannot be read here")
    assert "another process of this run ended" in told[0]


@pytest.mark.hard
@pytest.mark.parametrize("change", ["see_other_images", "see_other_files"])
def test_where_one_machine_sees_other_images_all_say_so_also_when_the_run_goes_on(config, change):
    run = config("run")
    trained(run, 2)
    Path(run["out"], "bundle.safetensors").unlink()  # goes on from its checkpoint
    assert codes(start(run, 2, [change])) == [7, 7]
    told = [Path(f"{run['out']}-error-{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    assert told[0] == told[1]
    assert told[0].startswith("TrainingError: rank 1 of 2: images, places or weights there are not those of rank 0")


def torchrun(config, *options):
    """Start the command line in two processes of torchrun."""
    path = Path(config["out"] + ".toml")
    path.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in config.items()), encoding="utf-8")
    door = ["--no-python", str(Path(sys.executable).with_name("geo-mvmf")), "train", str(path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *options, *door]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process):
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.hard
def test_torchrun_and_the_command_line(config):
    run = config("run")
    process = torchrun(run)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("wrote ") == 1
    assert len(load_bundle(Path(run["out"], "bundle.safetensors"), device="cpu").head.weight) == 18
    again = torchrun(run)
    again.communicate(timeout=240)
    assert again.returncode == 0  # it is finished


@pytest.mark.hard
@pytest.mark.timeout(900)
def test_torchrun_starts_all_again_when_one_is_killed(config):
    whole, run = config("whole", **LONG), config("run", **LONG)
    trained(whole, 2)
    process = torchrun(run, "--max-restarts", "4")  # on a busy machine gloo may fail to join them at once
    wait_for(Path(run["out"], "checkpoint-0000000008.safetensors"), process)
    os.kill(children(process)[1], signal.SIGKILL)
    try:
        _, err = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:  # gloo hangs at times where torchrun lets the processes join anew
        for number in [*children(process), process.pid]:
            os.kill(number, signal.SIGKILL)
        process.communicate()
        process = torchrun(run)  # what somebody does who finds it so: the run goes on all the same
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert [record["event"] for record in log_of(run)].count("resume") == 1
    assert differences(whole, run, resumed=-1)[1] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"head": "cross_entropy"},
            "components of an mvmf head, and head cross_entropy has none; start one",
        ),
        ({"batch_size": 2}, "batch_size 2 is shared by 3 processes, and stage head needs 1 or more for each"),
        ({"stage": "finetune", "batch_size": 5}, "batch_size 5 is shared by 3 processes, and stage finetune needs 2"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(config, options, message):
    three = ranks.Ranks()
    three.size = 3
    with pytest.raises(UsageError, match=message):
        training._check_ranks(TrainingConfig(**config("run", **options)), three)
