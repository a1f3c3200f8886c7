"""The paper's section 2.4: how the estimation error falls with images n, and grows with features d and components c.

    python experiments/theory.py                  # some minutes on 2 cores
    python experiments/theory.py --scale full     # more sizes and seeds

The truth is a mixture whose weights W are known, smooth over the Earth, and the same for every number of components.
Writes docs/experiments/theory.{md,csv,png}. No data are needed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import textwrap
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import record
import torch
from matplotlib.figure import Figure
from torch import Tensor

from geo_mvmf.model.components import log_density
from geo_mvmf.model.loss import cross_entropy_loss, mvmf_loss

LOG_KAPPA = 4.0  # half of a component lies within 1,020 km
TEST = 20_000
RIDGES = tuple(
    10.0 ** (-0.5 * k) for k in range(2, 9)
)  # 0.1 to 1e-4; of which the best by held-out images is taken, for each loss by itself
HELD_OUT = 0.25
BASE = {"n": 2048, "d": 16, "c": 256}  # what stays while one of the three varies
SCALES = {
    "small": {
        "n": (512, 1024, 2048, 4096),
        "d": (8, 16, 32),
        "c": (64, 256, 1024),
        "seeds": 2,
    },
    "full": {
        "n": tuple(2**p for p in range(7, 16)),
        "d": (4, 8, 16, 32, 64, 128, 256),
        "c": tuple(2**p for p in range(4, 14)),
        "seeds": 10,
    },
}
LOSSES = ("MvMF", "cross entropy, nearest mean direction", "cross entropy, true component")
ERRORS = (0.1, 0.2, 0.3, 0.5, 0.8)  # ticks, in nats
NEAR = 0.15  # exponents that differ by less are called "about as claimed"
CLAIMED = {"n": (-0.5, -0.5), "d": (0.5, 0.5), "c": (0.0, 0.5)}  # exponents of MvMF and of cross entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    options = parser.parse_args()
    began, scale = time.monotonic(), SCALES[options.scale]
    wanted = [
        (name, value, seed) for name in ("n", "d", "c") for seed in range(scale["seeds"]) for value in scale[name]
    ]
    wanted.sort(key=lambda each: each[1] if each[0] != "d" else 0, reverse=True)  # the longest first
    with multiprocessing.get_context("spawn").Pool(2, initializer=begin) as pool:  # a core each
        found = list(itertools.chain.from_iterable(pool.map(measured_at, wanted, chunksize=1)))
    table = pd.DataFrame(found).sort_values(["varied", "seed", "n", "d", "c"], kind="stable", ignore_index=True)
    facts = {"seconds": f"{time.monotonic() - began:.0f}", "seeds": f"0 to {scale['seeds'] - 1}", "inputs": "none"}
    record.write("theory", page(table), table, picture(table), facts)


def begin() -> None:
    """Prepare a process."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)


def measured_at(wanted: tuple[str, int, int]) -> list[dict[str, float | str]]:
    """Measure at one value of one size, all others as in `BASE`."""
    name, value, seed = wanted
    sizes = BASE | {name: value}
    print(f"{name} {value}, seed {seed}", flush=True)
    return [{"varied": name, "seed": seed, **sizes, **each} for each in measured(**sizes, seed=seed)]


class Truth:
    """A mixture on c components with known W: W_i is a smooth function of the mean direction, whatever c is."""

    def __init__(self, d: int, c: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(1000 * seed + d)
        waves, phase = self._normal(d, 3) * 2.0, self._uniform(d) * 2.0 * math.pi
        self.mean_directions = even_directions(c)
        self.log_concentrations = torch.full((c,), LOG_KAPPA)
        # of unit variance in each feature; together they make logits of standard deviation 2
        self.weight = math.sqrt(8.0 / d) * torch.cos(self.mean_directions @ waves.T + phase)
        self.bias = torch.zeros(c)

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features, true components, places."""
        features = self._normal(n, self.weight.shape[1])
        share = torch.softmax(features @ self.weight.T, dim=1)
        component = torch.multinomial(share, 1, generator=self.generator).squeeze(1)
        return features, component, self._around(self.mean_directions[component])

    def nll(self, weight: Tensor, features: Tensor, y: Tensor) -> float:
        """Mean negative log-likelihood of places under the mixture with these weights."""
        return float(mvmf_loss(features, weight, self.bias, self.mean_directions, self.log_concentrations, y))

    def _around(self, mean: Tensor) -> Tensor:
        kappa = math.exp(LOG_KAPPA)
        share = self._uniform(len(mean))
        height = torch.log(share + (1.0 - share) * math.exp(-2.0 * kappa)) / kappa + 1.0  # cosine of the angle
        other = self._normal(len(mean), 3)
        across = torch.nn.functional.normalize(other - (other * mean).sum(1, keepdim=True) * mean)
        return height[:, None] * mean + (1.0 - height**2).clamp(min=0.0).sqrt()[:, None] * across

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)


def even_directions(c: int) -> Tensor:
    """Spread c directions evenly over the sphere (a sunflower)."""
    k = torch.arange(c) + 0.5
    z, turn = 1.0 - 2.0 * k / c, k * math.pi * (3.0 - math.sqrt(5.0))
    ring = (1.0 - z * z).sqrt()
    return torch.stack([ring * turn.cos(), ring * turn.sin(), z], dim=1)


def measured(n: int, d: int, c: int, seed: int) -> list[dict[str, float | str]]:
    """Excess of the NLL over that of the true weights, for weights estimated by each loss from the same images."""
    truth = Truth(d, c, seed)
    features, component, y = truth.draw(n)
    test_features, _, test_y = truth.draw(TEST)
    least = truth.nll(truth.weight, test_features, test_y)
    nearest = log_density(y, truth.mean_directions, truth.log_concentrations).argmax(dim=1)
    losses: dict[str, Callable[[Tensor, slice], Tensor]] = {
        LOSSES[0]: lambda w, rows: mvmf_loss(
            features[rows], w, truth.bias, truth.mean_directions, truth.log_concentrations, y[rows]
        ),
        LOSSES[1]: lambda w, rows: cross_entropy_loss(features[rows], w, truth.bias, nearest[rows]),
        LOSSES[2]: lambda w, rows: cross_entropy_loss(features[rows], w, truth.bias, component[rows]),
    }
    found = []
    for name, loss in losses.items():
        weight, ridge = chosen(loss, torch.zeros_like(truth.weight), n)
        excess = truth.nll(weight, test_features, test_y) - least
        found.append({"loss": name, "ridge": ridge, "excess": excess, "uniform": math.log(4.0 * math.pi) - least})
    return found


def chosen(loss: Callable[[Tensor, slice], Tensor], start: Tensor, n: int) -> tuple[Tensor, float]:
    """Choose the ridge by held-out images under the loss itself, and fit all images with it."""
    fitted, rest = slice(0, n - round(HELD_OUT * n)), slice(n - round(HELD_OUT * n), n)
    scores, weight = {}, start
    for ridge in sorted(RIDGES, reverse=True):  # from the stiffest on, each from where the one before ended
        weight = fit(loss, weight, fitted, ridge)
        with torch.no_grad():
            scores[ridge] = float(loss(weight, rest))
    best = min(scores, key=scores.__getitem__)
    return fit(loss, start, slice(0, n), best), best


def fit(loss: Callable[[Tensor, slice], Tensor], start: Tensor, rows: slice, ridge: float) -> Tensor:
    """Minimise loss + ridge / 2 |W|^2 by L-BFGS."""
    weight = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([weight], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(weight, rows) + 0.5 * ridge * weight.square().sum()
        value.backward()
        return value

    optimiser.step(closure)
    return weight.detach()


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """Slopes of log excess by log size, with the range over seeds."""
    lines = []
    for (varied, loss), rows in table.groupby(["varied", "loss"], sort=False):
        slopes = [
            np.polyfit(np.log(each[varied]), np.log(each["excess"].clip(lower=1e-6)), 1)[0]
            for _, each in rows.groupby("seed")
        ]
        lines.append(
            {"varied": varied, "loss": loss, "slope": np.mean(slopes), "low": min(slopes), "high": max(slopes)}
        )
    return pd.DataFrame(lines)


def page(table: pd.DataFrame) -> str:
    """The text, with the slopes."""
    found = exponents(table)
    lines = []
    for loss in LOSSES:
        cells = []
        for varied in ("n", "d", "c"):
            row = found[(found["varied"] == varied) & (found["loss"] == loss)].iloc[0]
            cells.append(f"{row['slope']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})")
        lines.append([loss, *cells])
    for name, which in (("claimed for MvMF, sqrt(d / n)", 0), ("claimed for cross entropy, sqrt(c d / n)", 1)):
        lines.append([name, *(f"{CLAIMED[varied][which]:+.1f}" for varied in ("n", "d", "c"))])
    at = {k: v for k, v in BASE.items() if k != "n"}
    sizes = sorted(table.loc[table["varied"] == "n", "n"].unique())
    by_n = table[table["varied"] == "n"].pivot_table(index="n", columns="loss", values="excess")
    excess = record.rows(("n", *LOSSES), [[n, *(f"{by_n.loc[n, loss]:.4f}" for loss in LOSSES)] for n in sizes])
    return TEXT.format(
        sizes=", ".join(f"{name} {value}" for name, value in BASE.items()),
        at=", ".join(f"{name} = {value}" for name, value in at.items()),
        log_kappa=LOG_KAPPA,
        test=TEST,
        uniform=table["uniform"].median(),
        exponents=record.rows(("estimated by", "n", "d", "c"), lines),
        excess=excess,
        against=textwrap.fill(AGAINST.format(**against_the_paper(table, found)), 120),
    )


def against_the_paper(table: pd.DataFrame, found: pd.DataFrame) -> dict[str, object]:
    """What the last paragraph says in numbers."""
    slope = {(row.varied, row.loss): row.slope for row in found.itertuples()}
    near = all(abs(slope[varied, LOSSES[0]] - CLAIMED[varied][0]) < NEAR for varied in ("n", "d"))
    by_c = table[table["varied"] == "c"].pivot_table(index="c", columns="loss", values="excess")
    told = f"({slope['n', LOSSES[0]]:+.2f}, {slope['d', LOSSES[0]]:+.2f})"
    return {
        "agrees": f"With n and with d the MvMF loss goes {'about as' if near else 'otherwise than'} claimed {told}.",
        "less": "but less" if slope["c", LOSSES[0]] < slope["c", LOSSES[1]] else "and no less",
        "by_c": f"{slope['c', LOSSES[0]]:+.2f}",
        "by_c_nearest": f"{slope['c', LOSSES[1]]:+.2f}",
        "most": by_c.index.max(),
        "mvmf": by_c[LOSSES[0]].iloc[-1],
        "entropy": by_c[LOSSES[1]].iloc[-1],
    }


TEXT = """# Section 2.4: estimation error against images, features and components

![Excess NLL against n, d and c](theory.png)

The paper claims that the estimation error of the MvMF loss is O(sqrt(d / n)) and that of cross entropy
Omega(sqrt(c d / n)). Here the truth is known: a mixture of c components (log kappa {log_kappa:g}, mean directions
spread evenly) whose weights W are a smooth function of the mean direction, the same function for every c, of d normal
features. Places are drawn from it; W is estimated from n of them three times: by the MvMF loss, by cross entropy with
the nearest mean direction as the class (as PlaNet), and by cross entropy with the component that really made the place,
which nobody can know. Each has an L2 penalty chosen by held-out images under its own loss; mean directions and
concentrations are the true ones. The error is the excess of the mean NLL of {test} new places under the mixture with
the estimated W over that with the true W. (Knowing nothing, a uniform density, costs {uniform:.2f} nats.) One of n,
d, c varies while the others stay at {sizes}.

Exponents: the slope of log error by the logarithm of each size, the mean over seeds and their range.

{exponents}

Error by the number of images ({at}), nats:

{excess}

{against}
"""

AGAINST = """**Against the paper.** {agrees} With c the error of MvMF does grow ({by_c}), unlike the bound, {less} than
that of cross entropy with the label that PlaNet can have ({by_c_nearest}): with {most:,} components {mvmf:.2f} nats
against {entropy:.2f}, where components come to lie within each other's width. Cross entropy with the true component has
a label that nobody has: it is told which component made each place. Slopes of so few sizes say how error grows here and
not in the limit; the steps in the curves are those of the penalties to choose from, half a decade apart. What the
proofs bound is the excess of the loss over the best weights of bounded norm, not quite the same."""


def picture(table: pd.DataFrame) -> Figure:
    """Three panels, one size each."""
    figure = Figure(figsize=(12.0, 4.0), layout="constrained")
    names = {"n": "images n", "d": "features d", "c": "components c"}
    for axes, (varied, label) in zip(figure.subplots(1, 3, sharey=True), names.items(), strict=True):
        for loss, colour, marker in zip(LOSSES, ("#0072b2", "#d55e00", "#999999"), "os^", strict=True):
            rows = table[(table["varied"] == varied) & (table["loss"] == loss)]
            middle = rows.groupby(varied)["excess"].median()
            axes.plot(middle.index, middle, color=colour, marker=marker, label=loss)
            axes.plot(rows[varied], rows["excess"], color=colour, marker=marker, linestyle="", alpha=0.25, markersize=4)
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.set_xticks(middle.index, [str(value) for value in middle.index])
        axes.set_yticks(ERRORS, [f"{error:g}" for error in ERRORS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("excess NLL, nats")
    figure.axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
