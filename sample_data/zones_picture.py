"""Draw docs/zones.png: the probability of every country for one chip, and the chips expected in every country."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from geo_mvmf import predicting
from geo_mvmf.inputs import tables
from geo_mvmf.maps.zones import ZoneProbabilities, Zones
from geo_mvmf.model.bundle import load_bundle

HERE = Path(__file__).resolve().parent
COUNTRIES = 6  # named beside the map


def main(out: Path) -> None:
    """Predict the held-out chips, measure the countries, and draw."""
    table = tables.read_image_table(HERE / "truth.csv", root=HERE)
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(HERE / "relief.safetensors", device="cpu")
        found = predicting.predict(bundle, table, out=Path(folder) / "chips.nc", workers=1)
        layer = Zones.read(HERE / "countries.geojson")
        held = found.zones(layer)
    image = int(np.argmax(np.sort(held.probabilities, axis=1)[:, -2]))  # the one most torn between two countries
    name = Path(held.image_ids[image]).name
    figure = Figure(figsize=(9.0, 7.6), dpi=90)
    FigureCanvasAgg(figure)
    one, album = figure.subplots(2, 1)
    draw(one, layer, held.probabilities[image], f"{name}: probability of every country; {in_no_zone(held, image)}")
    legend(one, held.names, held.probabilities[image], "{:.0%}")
    expected = held.expected()["expected_images"].to_numpy()
    draw(album, layer, expected, f"{len(held.image_ids)} chips: how many are expected in every country")
    legend(album, held.names, expected, "{:.1f}")
    figure.tight_layout()
    figure.savefig(out)
    print(held.top(3).iloc[3 * image : 3 * image + 3].to_string(index=False))
    print(out)


def in_no_zone(held: ZoneProbabilities, image: int) -> str:
    """Say what no country holds."""
    return f"{held.in_no_zone[image]:.0%} in none"


def draw(axes: Axes, layer: Zones, values: np.ndarray, title: str) -> None:
    """Shade every country by its value."""
    axes.set_facecolor("#f7fafc")
    frame = layer.polygons.assign(value=values)
    frame.plot(
        column="value",
        cmap="RdPu",
        vmin=0.0,
        ax=axes,
        edgecolor="#b5ada0",
        linewidth=0.4,
        legend=True,
        legend_kwds={"shrink": 0.7},
    )
    axes.set(xlim=(-180, 180), ylim=(-60, 85), title=title, xlabel="", ylabel="")
    axes.set_xticks([])
    axes.set_yticks([])


def legend(axes: Axes, names: np.ndarray, values: np.ndarray, form: str) -> None:
    """List the largest values."""
    largest = [row for row in np.argsort(-values, kind="stable")[:COUNTRIES] if values[row] > 0.004]
    text = "\n".join(f"{form.format(values[row])}  {names[row]}" for row in largest)
    axes.text(-176, -56, text, fontsize=9, va="bottom", bbox={"facecolor": "white", "edgecolor": "#b5ada0"})


if __name__ == "__main__":
    main(HERE.parent / "docs" / "zones.png")
