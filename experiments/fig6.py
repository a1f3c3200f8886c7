"""The paper's Figure 6: the map of one weakly localizable chip, for PlaNet and MvMF, as c doubles.

    python experiments/fig6.py --data FOLDER --out WORK [--scale small|full]

FOLDER is described in docs/experiments/README.md. Writes docs/experiments/fig6.{md,csv,png}.
"""

from __future__ import annotations

import heads
import imagery
import numpy as np
import numpy.typing as npt
import pandas as pd
import record
import shapely
import torch
from fig4 import about
from heads import Job
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor

from geo_mvmf import coastlines, s2, sphere
from geo_mvmf.maps import outlines, ranks, summaries
from geo_mvmf.maps.density import density_raster
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.model.class_head import CrossEntropyHead
from geo_mvmf.model.components import log_density
from geo_mvmf.model.heads import MvmfHead

FloatArray = npt.NDArray[np.float64]
Mixtures = dict[tuple[str, int], VmfMixture | CellMixture]
Row = dict[str, str | int | float]
Head = MvmfHead | CrossEntropyHead

SHOWN = (6, 7, 8)  # the paper's 2^6, 2^7, 2^8
POWERS = (4, 5, 6, 7, 8, 9, 10)
METHODS = {"PlaNet": "cross_entropy", "MvMF": "mvmf"}
RESOLUTION = 1.0  # degrees
REACH_KM = 1000.0
CANDIDATES = 200
WEAK = 0.8  # quantile of the 90 % regions' areas, among the candidates, at which the chip is taken
HIGHLIGHTED_LEVEL = 2  # of the S2 cell that is highlighted
NODE_LEVEL = 7


def main() -> None:
    options = imagery.read_options(__doc__)
    scale = imagery.SCALES[options.scale]
    frozen = imagery.frozen_features(options.data, options.out, scale)
    data = heads.Data.of(frozen)
    torch.set_num_threads(1)
    made = {
        (name, power): heads.trained(Job(method, power, scale.head_steps, scale.head_batch), data)
        for name, method in METHODS.items()
        for power in POWERS
    }
    rows = np.random.default_rng(0).permutation(frozen.chosen(imagery.NEW, "month unseen"))[:CANDIDATES]
    chip = weakly_localizable(made["MvMF", 8], rows, data)
    features = torch.from_numpy(data.test_features[chip : chip + 1])
    mixtures = {key: head.mixture(features) for key, head in made.items()}
    truth = frozen.test.iloc[chip]
    cell = highlighted(mixtures)
    table = pd.DataFrame([measured(*key, mixture, truth, cell) for key, mixture in mixtures.items()])
    table["moved_by_doubling"] = [moved(made, name, power, data.test_features[rows]) for name, power in mixtures]
    facts = {**frozen.facts, "heads": about(scale), "inputs": record.inputs(*imagery.data_files(options.data))}
    pixels = np.asarray(Image.open(options.out / "test" / str(truth["path"])))
    record.write("fig6", page(table, truth, scale), table, picture(mixtures, table, truth, cell, pixels), facts)


def weakly_localizable(head: MvmfHead, rows: npt.NDArray[np.int64], data: heads.Data) -> int:
    """Choose a chip by a rule: of some, the one at a quantile of the area of its 90 % region."""
    mixture = head.mixture(torch.from_numpy(data.test_features[rows]))
    places = mixture.mean_directions[np.argmax(mixture.log_mixing_weights, axis=1)]
    area = summaries.summarise(mixture, *sphere.to_longitude_latitude(places))["area_90_km2"].to_numpy()
    return int(rows[np.argsort(area)[round(WEAK * (len(rows) - 1))]])


def cells_of(level: int) -> npt.NDArray[np.uint64]:
    """All S2 cells of a level."""
    cells = s2.face_cells()
    for _ in range(level):
        cells = s2.children(cells).ravel()
    return np.asarray(cells, dtype=np.uint64)


def moved(made: dict[tuple[str, int], Head], name: str, power: int, features: npt.NDArray[np.float32]) -> float:
    """Probability that moves between cells of `HIGHLIGHTED_LEVEL` when c has doubled to this: mean over chips."""
    if power == POWERS[0]:
        return float("nan")
    before, after = (masses(made[name, each], features) for each in (power - 1, power))
    return float(0.5 * np.abs(after - before).sum(axis=1).mean())


def masses(head: Head, features: npt.NDArray[np.float32]) -> FloatArray:
    """Probability of all S2 cells of `HIGHLIGHTED_LEVEL`, (chips, cells): by the share of each component in each."""
    with torch.no_grad():
        weights = head.log_mixing_weights(torch.from_numpy(features)).double().exp().numpy()
    cells = cells_of(HIGHLIGHTED_LEVEL)
    if isinstance(head, MvmfHead):
        return weights @ component_masses(head.mean_directions, head.log_concentrations, cells)
    parts = [CellMixture(head.cell_ids[i : i + 1], [1.0], [0, 1]) for i in range(len(head.cell_ids))]
    return np.asarray(weights @ np.array([mass_of(part, cells) for part in parts]))


def component_masses(directions: Tensor, log_concentrations: Tensor, cells: npt.NDArray[np.uint64]) -> FloatArray:
    """Share of every component in every S2 cell of one level: sums over the cells of `NODE_LEVEL`, each at its centre.

    Their edges are 75 km, half of what the narrowest components here are wide.
    """
    nodes = cells_of(NODE_LEVEL)
    where, area = torch.from_numpy(s2.centre(nodes)), torch.from_numpy(s2.area_sr(nodes))
    found = []
    for part in range(0, len(directions), 64):
        block = slice(part, part + 64)
        mass = log_density(where, directions[block], log_concentrations[block]).exp() * area[:, None]
        found.append((mass / mass.sum(dim=0)).T.reshape(-1, len(cells), len(nodes) // len(cells)).sum(dim=2))
    return torch.cat(found).numpy()


def highlighted(mixtures: Mixtures) -> np.uint64:
    """Choose by a rule the S2 cell for which PlaNet does what the paper's figure shows.

    Of all cells of one level, the one whose probability rises most and then falls most (or the other way round) as c
    goes over the numbers that are shown.
    """
    cells = cells_of(HIGHLIGHTED_LEVEL)
    low, middle, high = (mass_of(mixtures["PlaNet", power], cells) for power in SHOWN)
    swing = np.minimum(np.abs(middle - low), np.abs(high - middle)) * ((middle - low) * (high - middle) < 0.0)
    return np.uint64(cells[int(np.argmax(swing))])


def mass_of(mixture: VmfMixture | CellMixture, cells: npt.NDArray[np.uint64]) -> FloatArray:
    """Probability of S2 cells, (n,)."""
    own, mass = mixture.to_cells().of(0)
    # a cell of the density lies within one of these, or holds several
    inside = s2.contains(cells[:, None], own[None, :]) @ mass
    share = s2.area_sr(cells)[:, None] / s2.area_sr(own)[None, :]
    around = s2.contains(own[None, :], cells[:, None]) & ~s2.contains(cells[:, None], own[None, :])
    return np.asarray(inside + (around * share) @ mass)


def measured(method: str, power: int, mixture: VmfMixture | CellMixture, truth: pd.Series, cell: np.uint64) -> Row:
    """One row of the table."""
    where = [truth["longitude"]], [truth["latitude"]]
    ranked = ranks.ranks(mixture, *where, [0.5])
    return {
        "method": method,
        "power": power,
        "highlighted_probability": float(mass_of(mixture, np.array([cell], dtype=np.uint64))[0]),
        "probability_within_1000_km": float(mixture.probability_within(*where, REACH_KM)[0, 0]),
        "nll": float(-ranked["log_density"].iloc[0]),
        "searched_probability": float(ranked["searched_probability"].iloc[0]),
    }


def page(table: pd.DataFrame, truth: pd.Series, scale: imagery.Scale) -> str:
    """The text."""
    words = ("highlighted", "1000 km", "NLL", "moved")
    head = ("components", *(f"{method}: {what}" for method in METHODS for what in words))
    rows = []
    for power in POWERS:
        cells = [f"2^{power}"]
        for method in METHODS:
            own = table[(table["method"] == method) & (table["power"] == power)].iloc[0]
            cells += [f"{own[name]:.3f}" for name in ("highlighted_probability", "probability_within_1000_km")]
            cells += [f"{own['nll']:.2f}", "" if power == POWERS[0] else f"{own['moved_by_doubling']:.3f}"]
        rows.append(cells)
    place = f"{truth['longitude']:.1f}, {truth['latitude']:.1f}"
    return f"""# Figure 6: one weakly localizable chip, as c doubles

![The chip, and the densities of PlaNet and MvMF with 2^6, 2^7 and 2^8 components](fig6.png)

The paper: PlaNet "is highly sensitive to the number of classes": a region has no probability at 2^6, more at 2^7, less
again at 2^8, while MvMF's output "smoothly takes on the shape of the underlying geography". Here the chip is chosen by
a rule (of {CANDIDATES} chips at new places in unseen months, the one at the {WEAK:g} quantile of the area of its 90 %
region by MvMF with 2^8 components; it lies at longitude, latitude {place}), and so is the highlighted S2 cell (of
level {HIGHLIGHTED_LEVEL}, the one whose probability by PlaNet rises and falls most, or falls and rises, over the three
numbers that are shown). So the figure shows what the paper speaks of where it is strongest. What no choice was made on
tells how much it matters: the probability within {REACH_KM:.0f} km of the true place and the NLL of this chip, and
*moved*: the probability that moves from some of the {len(cells_of(HIGHLIGHTED_LEVEL))} cells of that level to others
when c has doubled, the mean over all {CANDIDATES} chips. A method that is smooth in c moves little.

{record.rows(head, rows)}

{record.reading(READING, was_read=scale == imagery.SCALES["small"])}
"""


READING = """\
**Agrees.** PlaNet's map is a patchwork whose pieces have sharp edges and change with c: the highlighted cell holds
0.006 with 2^6 classes, 0.152 with 2^7, 0.033 with 2^9. MvMF's map has no edges, and land and sea show through it.

**Does not agree.** MvMF's probability of the same cell rises and falls with c, too (0.005, 0.069, 0.088, 0.009), and
over all chips it moves more than PlaNet's when c doubles, not less (0.33 against 0.26 from 2^5 to 2^6, 0.15 against
0.09 from 2^8 to 2^9): its components become narrower with every doubling, all of them, while most of PlaNet's cells
stay as they are. What is smooth is the map at one c, not the way it goes with c. Both methods put most of the
probability within 1,000 km of the place from 2^9 on, and their NLL is the same to 0.2.

One chip is an anecdote, in the paper as here; fig5 has the averages.
"""


def picture(
    mixtures: Mixtures, table: pd.DataFrame, truth: pd.Series, cell: np.uint64, pixels: npt.NDArray[np.uint8]
) -> Figure:
    """Draw the chip, six maps, and how the highlighted probability goes with c."""
    figure = Figure(figsize=(14.0, 4.3), layout="constrained")
    axes = figure.subplots(2, 4, width_ratios=(0.55, 1, 1, 1))
    axes[0, 0].imshow(pixels)
    axes[0, 0].set(title="the chip, 475 km", xticks=[], yticks=[])
    grid = Grid.globe(RESOLUTION)
    shown = {key: density_raster(mixtures[key], grid).values[0] for key in mixtures if key[1] in SHOWN}
    norm = colors.LogNorm(1e-4 * max(values.max() for values in shown.values()), max(v.max() for v in shown.values()))
    for line, method in zip(axes, METHODS, strict=True):
        for axis, power in zip(line[1:], SHOWN, strict=True):
            drawn = show(axis, shown[method, power], norm, truth, cell)
            axis.set_title(f"{method}, 2^{power}", fontsize=10)
    figure.colorbar(drawn, ax=axes[:, 3], label="probability per km²", shrink=0.8)
    axis = axes[1, 0]
    for method, colour in (("PlaNet", "C3"), ("MvMF", "C0")):
        own = table[table["method"] == method]
        axis.plot(2.0 ** own["power"], own["highlighted_probability"], "o-", color=colour, markersize=3, label=method)
    axis.set_xscale("log", base=2)
    axis.set(title="highlighted cell", xlabel="components c", ylabel="probability", ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def show(axis: Axes, density: FloatArray, norm: colors.Normalize, truth: pd.Series, cell: np.uint64) -> AxesImage:
    """Draw one density with the coasts, the true place and the highlighted cell."""
    drawn = axis.imshow(
        np.maximum(density, norm.vmin), extent=(-180, 180, -90, 90), cmap="magma_r", norm=norm, interpolation="nearest"
    )
    for ring in coastlines.land():
        axis.plot(*ring.T, color="0.5", linewidth=0.3)
    for part in shapely.get_parts(outlines.outline(np.array([cell], dtype=np.uint64))):
        axis.plot(*part.exterior.xy, color="C2", linewidth=1.2)
    axis.plot(truth["longitude"], truth["latitude"], "+", color="C2", markersize=9, markeredgewidth=1.6)
    axis.set(xlim=(-180, 180), ylim=(-60, 80), xticks=[], yticks=[])
    return drawn


if __name__ == "__main__":
    main()
