"""One rank of test_sharding: `runpy` runs this file in a process of its own, with JOB among its globals.

It does what JOB says, case by case, and writes what came of it to a file of its own.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist

from geo_mvmf.errors import TrainingError
from geo_mvmf.model import numerators, streaming
from geo_mvmf.model.fused_optimiser import FusedAdam
from geo_mvmf.model.heads import MvmfHead
from geo_mvmf.model.ranks import Ranks
from geo_mvmf.model.sharding import heaviest_directions, sharded_mvmf_loss

COMPONENTS = ("weight", "bias", "mean_directions", "log_concentrations")
ROWS = ("features", "target_directions", "sample_weight", "pull")

TWINS = {
    "denominators of one's own": (Ranks, "logsumexp", lambda _, values: values),
    "gradients by features that stay": (
        Ranks,
        "scatter_sum",
        lambda ranks, rows, counts: rows[sum(counts[: ranks.rank]) :][: counts[ranks.rank]],
    ),
    "pairs without a certificate": (numerators.NearComponents, "_sum_all", lambda *_: None),
}


def loss_of(ranks, case, arrays):
    """Loss and gradients of this rank, as arrays."""
    components = ranks.part(len(arrays["weight"]))
    first = sum(case["counts"][: ranks.rank])
    rows = slice(first, first + case["counts"][ranks.rank])
    parts = {name: torch.from_numpy(arrays[name])[components].clone() for name in COMPONENTS}
    parts |= {name: torch.from_numpy(arrays[name])[rows].clone() for name in ROWS if name in arrays}
    pull = parts.pop("pull", None)
    for name in case["trained"]:
        parts[name].requires_grad_()
    loss = sharded_mvmf_loss(**parts, ranks=ranks, **case["options"])
    loss.backward(pull)
    found = {name: parts[name].grad.numpy() for name in case["trained"]}
    return found | {"loss": loss.detach().numpy()}


def fused(ranks, case, arrays):
    """The weight after two fused steps."""
    components, rows = ranks.part(len(arrays["weight"])), ranks.part(len(arrays["features"]))
    parts = {name: torch.from_numpy(arrays[name])[components].clone() for name in COMPONENTS}
    parts |= {name: torch.from_numpy(arrays[name])[rows].clone() for name in ROWS if name in arrays}
    parts["weight"] = torch.nn.Parameter(parts["weight"])
    update = FusedAdam(parts["weight"])
    for _ in range(2):
        update.open_step(0.1)
        sharded_mvmf_loss(**parts, ranks=ranks, weight_update=update, **case["options"]).backward()
        update.close_step()
    return {"weight": parts["weight"].detach().numpy()}


def sent(ranks, case, arrays):
    """How many bytes this rank gives to others in a step."""
    names = ("all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor", "broadcast", "send")
    given, whole = [], {name: getattr(dist, name) for name in names}

    def counting(name):
        def count(*tensors, **options):
            own = tensors[-1] if name == "all_gather_into_tensor" else tensors[1 if name.startswith("reduce") else 0]
            given.append(own.nbytes)
            return whole[name](*tensors, **options)

        return count

    for name in names:
        setattr(dist, name, counting(name))
    loss_of(ranks, case, arrays)
    for name in names:
        setattr(dist, name, whole[name])
    return {"bytes": np.array(sum(given))}


def heaviest_of(ranks, case, arrays):
    components = ranks.part(len(arrays["weight"]))
    first = sum(case["counts"][: ranks.rank])
    features = torch.from_numpy(arrays["features"])[first : first + case["counts"][ranks.rank]]
    tensors = [torch.from_numpy(arrays[name])[components] for name in COMPONENTS[:3]]
    return {"heaviest": heaviest_directions(features, *tensors, ranks).numpy()}


def refused(ranks, case, arrays):
    """What this rank says when rank 1 alone is called otherwise."""
    components = ranks.part(len(arrays["weight"]))
    parts = {name: torch.from_numpy(arrays[name])[components] for name in COMPONENTS}
    features, y = torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["target_directions"])
    options = case["options"] if ranks.rank == 1 else {}
    if case.get("narrow") and ranks.rank == 1:
        features = features[:, 1:]
    if case.get("empty"):
        features, y = features[:0], y[:0]
    try:
        sharded_mvmf_loss(features, **parts, target_directions=y, ranks=ranks, **options)
    except ValueError as error:
        return {"message": np.array(str(error))}
    return {"message": np.array("")}


def peak(ranks, case, arrays):
    """How many bytes a head with its optimiser adds to what the process needs at most."""
    trained(ranks, case["d"], {name: array[:256] for name, array in arrays.items()})  # the code that it needs is there
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget former peaks
    trained(ranks, case["d"], arrays)
    return {"bytes": np.array(resident("VmHWM") - before)}


def trained(ranks, d, arrays):
    head = MvmfHead(d, arrays["mean_directions"], arrays["log_concentrations"], ranks=ranks)
    optimiser = torch.optim.Adam(head.parameters(), fused=True)
    rows = ranks.part(len(arrays["target_directions"]))
    features, y = (torch.from_numpy(arrays[name])[rows] for name in ("features", "target_directions"))
    for _ in range(2):
        optimiser.zero_grad()
        head.loss(features, y).backward()
        optimiser.step()


def resident(which):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def lost(ranks, case, arrays):
    """Rank 1 is gone; what the others say, and after how many seconds."""
    loss_of(ranks, case, arrays)
    if ranks.rank == 1:
        os._exit(9)
    begun = time.monotonic()
    try:
        loss_of(ranks, case, arrays)
    except TrainingError as error:
        name = np.array(f"{type(error).__name__}: {error}")
        return {"message": name, "seconds": np.array(time.monotonic() - begun)}
    return {}


DO = {
    "loss": loss_of,
    "fused": fused,
    "sent": sent,
    "heaviest": heaviest_of,
    "refused": refused,
    "peak": peak,
    "lost": lost,
}


def run(rank, size, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    cases = json.loads(Path(folder, "cases.json").read_text())
    streaming._CHUNK_LIMITS = tuple(cases["chunks"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    ranks = Ranks()
    for name, case in cases["cases"].items():
        arrays = dict(np.load(Path(folder, f"{name}.npz")))
        place, attribute, twin = TWINS.get(case.get("twin"), (None, None, None))
        if place is not None:
            whole = getattr(place, attribute)
            setattr(place, attribute, twin)
        np.savez(Path(folder, f"{name}-{rank}.npz"), **DO[case["do"]](ranks, case, arrays))
        if place is not None:
            setattr(place, attribute, whole)
    if "lost" not in cases["cases"]:
        dist.destroy_process_group()


if "JOB" in globals():  # and nothing where doctest looks in here
    run(**globals()["JOB"])
