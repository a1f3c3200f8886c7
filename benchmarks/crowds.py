"""What a summary and a place cost where an image's weight lies on very many components, by their number and width."""

from __future__ import annotations

import argparse
from unittest import mock

import numpy as np
import numpy.typing as npt
import record

from geo_mvmf import sphere, vmf
from geo_mvmf.maps import estimates, near, radial, summaries
from geo_mvmf.maps.sunflowers import Nodes
from geo_mvmf.mixture import VmfMixture

CASES = (
    *((16_000, log_kappa) for log_kappa in (12.0, 9.0, 6.0, 5.0)),
    *((65_536, log_kappa) for log_kappa in (9.0, 8.0, 6.0, 3.0)),
    (262_144, 6.0),
)
PLACES = (
    (65_536, 8.0, "median", None),
    (65_536, 8.0, "best_within", 200.0),
    (65_536, 8.0, "best_within", 2500.0),
    (65_536, 6.0, "median", None),
    (65_536, 6.0, "best_within", 200.0),
)
TARGET = (65_536, 8.0)
TARGET_S = 0.5
CHECKED = 300  # nodes whose densities are compared with sums over all components


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows, of_target = [], ""
    for number, log_kappa in CASES:
        image = _image(number, log_kappa)
        costs = [record.cost(lambda m=image: _summarise(m)).cpu for _ in range(options.repeats)]
        spread = record.spread(costs, 2)
        if (number, log_kappa) == TARGET:
            of_target = spread
        sigma = sphere.EARTH_RADIUS_KM * np.exp(-0.5 * log_kappa)
        memory = f"{record.peak_kib() / 2**10:.0f}"
        rows.append([number, f"{sigma:.0f} km (log kappa {log_kappa:g})", spread, f"{_miss(image):.0e}", memory])
    head = ("components", "sigma of each", "CPU s an image", "mean error of log density", "MiB so far")
    places = [_place(*case) for case in PLACES]
    found = ("components", "log kappa", "estimator", "CPU s", "CPU s over all", "worse by, relatively", "km apart")
    cells = record.cost(lambda: _image(*TARGET).to_cells(1e-2)).cpu
    body = f"""Components all over the Earth, log weights normal with standard deviation 1: nodes of one image with
their densities, and its summary. The error is that of {CHECKED} nodes drawn by their mass, against sums over all
components in double precision, nats.

{record.table(head, rows)}

Target: {TARGET[0]} components of log kappa {TARGET[1]:g} in {TARGET_S} s. {of_target} s.

Places of the same images, searched by fewer components and improved over all, and by a search over all; what is made
once for all images is counted. Worse is a longer expected distance or a smaller probability.

{record.table(found, places)}

Cells of the target's image, mass error 0.01: {cells:.1f} s. Uniform cells miss the density by its slope: the error goes
with one over the square root of their number, and one of 1e-4 would take some 5e9 cells."""
    record.write("crowds", "Images of very many components", body)


def _image(number: int, log_kappa: float) -> VmfMixture:
    generator = np.random.default_rng(0)
    logits = generator.normal(0.0, 1.0, number)
    directions = sphere.random_directions(number, generator)
    return VmfMixture(directions, np.full(number, log_kappa), (logits - np.logaddexp.reduce(logits))[None])


def _summarise(image: VmfMixture) -> Nodes:
    (nodes,) = summaries.nodes_of(image, is_trimmed=True)
    summaries.summarise(image, [0.0], [0.0], nodes=[nodes])
    return nodes


def _place(number: int, log_kappa: float, estimator: str, radius_km: float | None) -> list[object]:
    image = _image(number, log_kappa)
    places, costs = [], []

    def find() -> None:
        places.append(estimates.estimate(image, estimator, radius_km)[0])

    for crowd in (estimates.CROWD, number):  # the second one never searches by fewer
        with mock.patch.object(estimates, "CROWD", crowd):
            costs.append(record.cost(find).cpu)
    few, over_all = (_worth(image, place, radius_km) for place in places)
    apart = sphere.great_circle_distance_km(*places[0], *places[1])
    name = estimator if radius_km is None else f"{estimator}, {radius_km:g} km"
    return [
        number,
        log_kappa,
        name,
        f"{costs[0]:.2f}",
        f"{costs[1]:.1f}",
        f"{1.0 - few / over_all:.0e}",
        f"{apart:.3f}",
    ]


def _worth(image: VmfMixture, place: npt.NDArray[np.float64], radius_km: float | None) -> float:
    """The probability within the radius, or one over the expected distance."""
    if radius_km is not None:
        return float(image.probability_within(place[:1], place[1:], radius_km)[0, 0])
    table = radial.distance_table(image.log_concentrations)
    angle = sphere.angle(sphere.to_directions(*place), image.mean_directions)
    distance, _, _ = table(np.arange(image.num_components), angle)
    return 1.0 / float(np.exp(image.log_mixing_weights[0]) @ distance)


def _miss(image: VmfMixture) -> float:
    nodes = _summarise(image)
    some = np.random.default_rng(1).choice(nodes.mass.size, CHECKED, p=nodes.mass)
    exact = [_log_density(image, nodes.direction[:, node].astype(np.float64)) for node in some]
    return float(np.abs(np.log(nodes.density[some]) - exact).mean())


def _log_density(image: VmfMixture, direction: npt.NDArray[np.float64]) -> float:
    log_kappa = image.log_concentrations
    below = 0.5 * np.exp(log_kappa) * near.squared_chords(direction[None], image.mean_directions)[0]
    return float(np.logaddexp.reduce(image.log_mixing_weights[0] + vmf.log_normaliser(log_kappa) - below))


if __name__ == "__main__":
    main()
