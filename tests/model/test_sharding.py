"""Components spread over ranks: the loss and its gradients are those of one process, on 2 and on 4 of them.

The ranks are processes of their own that talk by gloo; `rank_of_loss` is what they run. Several cases share them.
"""

import json
import math
import multiprocessing
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from geo_mvmf import s2, sphere
from geo_mvmf.errors import TrainingError
from geo_mvmf.model import output_layer, ranks
from geo_mvmf.model.head_state import head_from_state, head_state, whole_head
from geo_mvmf.model.heads import MvmfHead
from geo_mvmf.model.loss import mvmf_loss
from geo_mvmf.model.ranks import Ranks
from geo_mvmf.model.sharding import heaviest_directions, sharded_mvmf_loss

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["geo_mvmf.model.training", "PIL.PngImagePlugin"])  # as the tests of kills ask for
SCRIPT = Path(__file__).with_name("rank_of_loss.py")
TRAINED = ("features", "weight", "bias", "mean_directions", "log_concentrations")


def problem(c=45, counts=(5, 2), d=6, log_kappa=(14.0, 14.0), dtype="float64", seed=0, far=False, **more):
    """Arrays of all rows and components, and how they are to be treated."""
    generator, n = np.random.default_rng(seed), sum(counts)
    mu = sphere.random_directions(c, generator)
    mu = mu[np.argsort(s2.leaf_ids(mu))]  # neighbours together, as a partition makes them: ranks have their regions
    y = mu[generator.integers(0, c, n)] + 0.01 * generator.normal(size=(n, 3))
    if far:  # all targets at one pole, all components of the last rank at the other one
        y = np.array([0.0, 0.0, 1.0]) + 0.01 * generator.normal(size=(n, 3))
        mu[-c // len(counts) :] = [0.0, 0.0, -1.0]
    arrays = {"features": (n, d), "weight": (c, d), "bias": (c,)}
    arrays = {name: generator.normal(size=shape).astype(dtype) for name, shape in arrays.items()}
    arrays |= {"mean_directions": mu, "log_concentrations": np.linspace(*log_kappa, c)}
    arrays["target_directions"] = y / np.linalg.norm(y, axis=1, keepdims=True)
    if more.pop("weighted", False):
        arrays["sample_weight"] = generator.uniform(size=n).astype(dtype)
    options = more.pop("options", {})
    if options.get("reduction") == "none":
        arrays["pull"] = generator.normal(size=n).astype(dtype)
    return {"do": "loss", "counts": counts, "options": options, "trained": TRAINED, **more}, arrays


def together(folder, cases, *, chunks=(16, 16), dies=()):
    """Run cases on as many ranks as their counts have; gives what each rank left, case by case."""
    folder.mkdir(exist_ok=True)
    size = len(next(iter(cases.values()))[0]["counts"])
    text = {"chunks": chunks, "cases": {name: case for name, (case, _) in cases.items()}}
    Path(folder, "cases.json").write_text(json.dumps(text))
    for name, (_, arrays) in cases.items():
        np.savez(Path(folder, f"{name}.npz"), **arrays)
    jobs = [{"JOB": {"rank": rank, "size": size, "folder": str(folder)}} for rank in range(size)]
    processes = [CONTEXT.Process(target=runpy.run_path, args=(str(SCRIPT), job)) for job in jobs]
    for process in processes:
        process.start()
    for rank, process in enumerate(processes):
        process.join(240)
        assert process.exitcode == (9 if rank in dies else 0), f"rank {rank} ended with {process.exitcode}"
    alive = [rank for rank in range(size) if rank not in dies]
    return {name: [dict(np.load(Path(folder, f"{name}-{rank}.npz"))) for rank in alive] for name in cases}


def alone(case, arrays):
    """The same in this process."""
    parts = {name: torch.from_numpy(array).clone() for name, array in arrays.items()}
    pull = parts.pop("pull", None)
    for name in case["trained"]:
        parts[name].requires_grad_()
    loss = mvmf_loss(**parts, **case["options"])
    loss.backward(pull)
    return {name: parts[name].grad.numpy() for name in case["trained"]} | {"loss": loss.detach().numpy()}


def errors(case, arrays, found):
    """By how much ranks differ from one process: of the loss, and of each gradient relative to its norm."""
    expected, wrong = alone(case, arrays), {}
    for name, exact in expected.items():
        if name == "loss" and exact.ndim == 0:
            wrong[name] = max(abs(float(of_rank[name]) - float(exact)) for of_rank in found) / max(1.0, abs(exact))
            continue
        whole = np.concatenate([of_rank[name] for of_rank in found]).astype(np.float64)
        assert whole.shape == exact.shape
        norm = np.linalg.norm(exact.astype(np.float64))  # 0 where a floor cuts all
        wrong[name] = np.linalg.norm(whole - exact) / max(norm, 1e-30)
    return wrong


def limit(case, arrays):
    return 1e-12 if arrays["weight"].dtype == np.float64 else 1e-6


NONE, SUM = {"reduction": "none"}, {"reduction": "sum"}
CASES = {
    "pairs": problem(c=301, options=NONE),
    "weights": problem(weighted=True, counts=(3, 4), log_kappa=(0.0, 20.0), dtype="float32"),
    "every": problem(c=300, counts=(0, 6), log_kappa=(2.0, 2.0), options=SUM | {"floor": 1e-3}),
    "far": problem(far=True, log_kappa=(16.0, 16.0)),
    "far and rounded": problem(far=True, log_kappa=(16.0, 16.0), dtype="float32", options=NONE, weighted=True),
    "recomputed": problem(options={"logit_budget_bytes": 0}),
    "frozen": problem(trained=("weight", "bias")),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """All the cases that two ranks are asked for by default, in one go."""
    refused = {"do": "refused"}
    others = {
        "heaviest": problem(c=33, do="heaviest"),
        "fused": problem(do="fused", c=70, counts=(4, 3)),
        "sent": problem(do="sent", c=40, counts=(4, 3)),
        "sent of many": problem(do="sent", c=4000, counts=(4, 3)),
        "floors": problem(**refused, options={"floor": 0.1}),
        "shapes": problem(**refused, narrow=True),
        "options": problem(**refused, options={"kept_type": "int4"}),
        "nothing": problem(**refused, empty=True),
        "twin": problem(twin="denominators of one's own"),
        "second twin": problem(twin="gradients by features that stay"),
    }
    return others, together(tmp_path_factory.mktemp("two"), CASES | others)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process_to_rounding(two, name):
    found = two[1][name]
    wrong = errors(*CASES[name], found)
    assert max(wrong.values()) < limit(*CASES[name]), wrong
    if CASES[name][0]["options"].get("reduction") != "none":
        assert found[0]["loss"] == found[1]["loss"]  # the same bits: all ranks judge it alike


def test_broken_twins_are_caught(two):
    others, found = two
    wrong = errors(*others["twin"], found["twin"])
    assert wrong["loss"] > 1e-2
    assert wrong["weight"] > 1e-2
    wrong = errors(*others["second twin"], found["second twin"])
    assert wrong["weight"] < 1e-12
    assert wrong["features"] > 1e-2


def test_the_heaviest_component_is_found_wherever_it_is(two):
    others, found = two
    tensors = [torch.from_numpy(others["heaviest"][1][name]) for name in ("features", "weight", "bias")]
    at = torch.log_softmax(tensors[0] @ tensors[1].T + tensors[2], dim=1).argmax(dim=1).numpy()
    whole = np.concatenate([of_rank["heaviest"] for of_rank in found["heaviest"]])
    np.testing.assert_array_equal(whole, others["heaviest"][1]["mean_directions"][at])
    assert len(set(at >= 17)) == 2  # some on each


def test_what_is_sent_is_of_the_rows_alone(two):
    of_few, of_many = (int(two[1][name][0]["bytes"]) for name in ("sent", "sent of many"))
    rows, columns = 8, 6  # 3 rows are filled up to 4
    assert of_few == of_many
    features, gradient, directions, four_numbers, scale = 4 * columns, rows * columns, 4 * 3, 4 * 7, 4
    agreement_and_value = 8 + 1
    assert of_many == 8 * (features + gradient + directions + four_numbers + scale + agreement_and_value)


def test_a_fused_update_of_each_part_is_that_of_the_whole(two):
    others, found = two
    case, arrays = others["fused"]
    parts = {name: torch.from_numpy(array).clone() for name, array in arrays.items()}
    parts["weight"] = torch.nn.Parameter(parts["weight"])
    optimiser = torch.optim.Adam([parts["weight"]], lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        mvmf_loss(**parts, **case["options"]).backward()
        optimiser.step()
    whole = np.concatenate([of_rank["weight"] for of_rank in found["fused"]])
    np.testing.assert_allclose(whole, parts["weight"].detach(), rtol=1e-6)
    assert np.abs(whole - arrays["weight"]).mean() > 0.1


MESSAGES = {
    "floors": ("floor is None on rank 0 and differs on rank 1", "floor is 0.1 on rank 1 and differs on rank 0"),
    "shapes": ("rank 1 of 2 was given wrong arguments", "weight has shape (22, 6), expected (C, 5)"),
    "options": ("rank 1 of 2 was given wrong arguments", "kept_type 'int4' is not None or bfloat16"),
    "nothing": ("none of 2 ranks has a row",) * 2,
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_one_rank_refuses_all_refuse(two, name):
    for of_rank, message in zip(two[1][name], MESSAGES[name], strict=True):
        assert message in str(of_rank["message"])


@pytest.mark.hard
def test_four_ranks_are_one_process_to_rounding(tmp_path):
    counts = ((3, 5, 4, 4), (0, 7, 0, 1), (2, 2, 2, 2), (1, 0, 0, 0))
    ranges = ((0.0, 0.0), (8.0, 8.0), (16.0, 16.0), (20.0, 20.0), (0.0, 20.0))
    cases = {}
    for number in range(80):
        size = {"counts": counts[number % 4], "c": (7, 130, 1001)[number % 3], "d": 5}
        options = {"reduction": ("mean", "sum", "none")[number // 2 % 3]}
        options |= {"floor": 1e-2} if number % 7 == 0 else {}
        kind = {"dtype": ("float64", "float32")[number % 2], "weighted": number % 5 == 0, "far": number % 11 == 0}
        cases[str(number)] = problem(**size, **kind, seed=number, log_kappa=ranges[number % 5], options=options)
    found = together(tmp_path / "four", cases, chunks=(64, 64))
    worst = {name: errors(*cases[name], found[name]) for name in cases}
    # of one row in float32 the gradient by the features cancels: one process alone errs by up to 4e-6 there
    allowed = {name: max(limit(*cases[name]), 4e-6 * (limit(*cases[name]) > 1e-9)) for name in cases}
    late = {name: wrong for name, wrong in worst.items() if not max(wrong.values()) < allowed[name]}
    assert late == {}


@pytest.mark.hard
@pytest.mark.parametrize("counts", [(90, 38), (32, 32, 32, 32)])
def test_batches_of_a_useful_size_agree_to_a_millionth(tmp_path, counts):
    kinds = {str(kappa): (kappa, kappa) for kappa in (0.0, 8.0, 16.0, 20.0)} | {"mixed": (0.0, 20.0)}
    cases = {
        name: problem(c=4099, counts=counts, d=64, dtype="float32", log_kappa=kappas) for name, kappas in kinds.items()
    }
    for _, arrays in cases.values():
        arrays["weight"] /= 8.0  # logits of some nats: their rounding is what both ways share
    found = together(tmp_path / "useful", cases, chunks=(256, 32768))
    for name, case in cases.items():
        wrong = errors(*case, found[name])
        # of wide components the gradient is a small difference of two softmaxes: one process, too, errs by a millionth
        assert max(wrong.values()) < (2e-6 if name == "0.0" else 1e-6), (name, wrong)


@pytest.mark.hard
def test_a_certificate_of_ones_own_components_is_enough_and_none_is_not(tmp_path):
    """Components near the targets are so unlikely that farther ones count: on one rank, or on both."""
    cases = {}
    for name, twin in (("right", None), ("twin", "pairs without a certificate")):
        case, arrays = problem(c=600, counts=(8, 8), log_kappa=(10.0, 10.0), options=NONE, twin=twin)
        near = np.argsort(-arrays["target_directions"][:5] @ arrays["mean_directions"].T, axis=1)[:, :20]
        arrays["bias"][near.ravel()] -= 1000.0
        cases[name] = case, arrays
    found = together(tmp_path / "misled", cases)
    assert max(errors(*cases["right"], found["right"]).values()) < 1e-11
    assert errors(*cases["twin"], found["twin"])["loss"] > 1e-3


@pytest.mark.hard
def test_two_ranks_need_half_the_memory_each(tmp_path):
    _, arrays = problem(c=1 << 16, counts=(32, 32), d=512, dtype="float32", log_kappa=(12.0, 12.0))
    arrays = {name: array for name, array in arrays.items() if name not in ("weight", "bias")}
    needed = {}
    for counts in ((64,), (32, 32)):
        case = {"do": "peak", "counts": counts, "d": 512, "options": {}}
        tries = []
        for number in range(3):  # the least: a thread that frees late adds some 30 MB now and then
            folder = tmp_path / f"of-{len(counts)}-{number}"
            found = together(folder, {"peak": (case, arrays)}, chunks=(256, 32768))["peak"]
            tries.append(max(int(of_rank["bytes"]) for of_rank in found))
        needed[len(counts)] = min(tries)
    weight = 4 * 512 * (1 << 16)
    assert needed[1] > 4 * weight  # the weight, its gradient and Adam's two
    assert 0.4 * needed[1] < needed[2] < 0.57 * needed[1]


def test_a_rank_that_dies_is_told_of(tmp_path):
    cases = {"lost": problem(do="lost")}
    (found,) = together(tmp_path / "lost", cases, dies=(1,))["lost"]
    assert str(found["message"]).startswith(
        "TrainingError: rank 0 of 2: another process of this run ended or is silent"
    )
    assert float(found["seconds"]) < 60.0  # long before patience ends


def test_one_process_alone_is_a_group_too():
    case, arrays = problem(counts=(7,), options={"floor": 1e-3}, weighted=True)
    parts = {name: torch.from_numpy(array) for name, array in arrays.items()}
    expected = mvmf_loss(**parts, **case["options"])
    assert float(sharded_mvmf_loss(**parts, ranks=Ranks(), **case["options"])) == pytest.approx(
        float(expected), rel=1e-14
    )


class Third(Ranks):
    """Rank 1 of 3, of whom the others are not there."""

    def __init__(self):
        self.rank, self.size = 1, 3


@pytest.mark.parametrize("columns", [1, 3, 16])
@pytest.mark.parametrize("count", [5, 40, 101, 96])
def test_a_part_begins_as_the_whole_does(count, columns, monkeypatch):
    monkeypatch.setattr(output_layer, "_DRAWN_ROWS", 32)
    mu = sphere.random_directions(count, np.random.default_rng(0))
    counts = np.arange(count)
    part = Third().part(count)
    head = MvmfHead(columns, mu, np.full(count, 9.0), prior_counts=counts, seed=3, ranks=Third())
    whole = MvmfHead(columns, mu, np.full(count, 9.0), prior_counts=counts, seed=3)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(head.state_dict()[name], tensor[part], rtol=0.0, atol=0.0)
    again = head_from_state(*head_state(whole), ranks=Third())
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0.0, atol=0.0)
    generator = torch.Generator().manual_seed(3)  # and as it did before there were ranks
    torch.testing.assert_close(whole.weight.detach(), torch.randn(count, columns, generator=generator) * 0.01)


def test_a_part_gives_no_mixture_and_needs_components_for_all():
    mu = sphere.random_directions(4, np.random.default_rng(0))
    head = MvmfHead(2, mu, np.zeros(4), ranks=Third())
    with pytest.raises(ValueError, match="part of rank 1 of 3, 1 components of a larger head"):
        head.mixture(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="2 components cannot be shared by 3 ranks"):
        MvmfHead(2, mu[:2], np.zeros(2), ranks=Third())
    whole = MvmfHead(2, mu, np.zeros(4), ranks=Ranks())
    assert whole_head(whole) is whole


@pytest.mark.parametrize(
    ("size", "count", "expected"), [(3, 7, (3, 2, 2)), (3, 2, (1, 1, 0)), (1, 5, (5,)), (4, 0, (0,) * 4)]
)
def test_parts_are_even_and_in_order(size, count, expected):
    some = Ranks()
    some.size = size
    parts = some.parts(count)
    assert tuple(part.stop - part.start for part in parts) == expected
    assert parts[0].start == 0
    assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]


def test_processes_that_cannot_be_joined_are_told_of(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(TrainingError, match="cannot be joined"), ranks.joined():
        pass


def test_heaviest_of_equal_ones_is_the_first():
    same = torch.zeros(3, 2), torch.zeros(5, 2), torch.zeros(5), torch.eye(5)[:, :3].double()
    assert heaviest_directions(*same, Ranks()).tolist() == [[1.0, 0.0, 0.0]] * 3
    hole = torch.tensor([[0.0, 0.0], [math.nan, 0.0], [0.0, 0.0]])
    assert heaviest_directions(hole, *same[1:], Ranks()).isnan().all(dim=1).tolist() == [False, True, False]
    assert math.isclose(float(MvmfHead(2, [[0, 0, 2.0]], [0.0]).heaviest_directions(torch.ones(1, 2))[0, 2]), 1.0)
