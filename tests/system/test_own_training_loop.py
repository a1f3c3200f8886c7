"""docs/own_training_loop.md: its blocks are one script that runs, and what it says of the outcome is so."""

import re
from pathlib import Path

import numpy as np
import pytest

from geo_mvmf.mixture import VmfMixture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_training_loop.md").read_text(encoding="utf-8")
# fewer windows, components and steps, for a run of seconds
SMALLER = {
    "12000": "600",
    "slice(200, None), slice(0, 200)": "slice(10, None), slice(0, 10)",
    "integers(200,": "integers(10,",
    "training], 200,": "training], 12,",
    "range(600)": "range(4)",
}
EVALUATION = 4  # the number of the block that takes longest


def run(page, folder, monkeypatch, *, skip=()):
    """Run the blocks of a page one after the other; gives the names that they leave."""
    monkeypatch.chdir(folder)
    page = page.replace('"sample_data/', f'"{(ROOT / "sample_data").as_posix()}/')
    names = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page, re.DOTALL)):
        if number in skip:
            continue
        exec(compile(block, f"block {number} of the page", "exec"), names)  # noqa: S102 (the page is this project's)
    return names


def smaller(page):
    for long, short in SMALLER.items():
        assert long in page
        page = page.replace(long, short)
    return page


def test_the_page_runs(tmp_path, monkeypatch):
    found = run(smaller(PAGE), tmp_path, monkeypatch, skip=[EVALUATION])
    assert len(found["losses"]) == 4
    again = float(found["head"].loss(found["features"], found["y"][:10]).detach())
    assert found["nll"] == pytest.approx(again, abs=1e-5)
    assert set(found["regions"]["level"]) == {0.5, 0.9}
    np.testing.assert_allclose(found["density"].probability_sum, 1.0, atol=1e-6)
    assert isinstance(found["own"], VmfMixture)
    assert len(found["own"]) == len(found["places"]) == 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("        mean_directions /= mean_directions.norm(dim=1, keepdim=True)\n", "normalise them"),
        ("    head.project()\n", "normalise them"),
    ],
)
def test_the_page_without_the_line_that_keeps_directions_on_the_sphere_says_so(line, message, tmp_path, monkeypatch):
    """The broken twins."""
    assert PAGE.count(line) == 1
    with pytest.raises(ValueError, match=message):
        run(smaller(PAGE).replace(line, ""), tmp_path, monkeypatch, skip=[EVALUATION])


def row_of(name):
    """The two figures of a row of the page's table."""
    cells = re.search(rf"^\| {name}.*? \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    return [float(cell.replace(",", "").removesuffix(" km").removesuffix(" %")) for cell in cells.groups()]


@pytest.mark.hard
def test_the_figures_of_the_page(tmp_path, monkeypatch, capsys):
    """As far as they are those of another processor, too."""
    found = run(PAGE, tmp_path, monkeypatch)
    assert np.mean(found["losses"][-20:]) < found["losses"][0] - 3.0
    assert f"({len(found['images'])}, 3, 32, 32)" in PAGE
    for column, name in enumerate(("baseline", "mine")):
        figures = found["geo_mvmf"].evaluate(found[name]).table().set_index("measure")["value"]
        assert figures["median_error_km"] == pytest.approx(row_of("median error")[column], rel=0.3)
        assert figures["nll_nats"] == pytest.approx(row_of("negative log-likelihood")[column], abs=0.3)
        shown = row_of("true places in the 90 % region")[column]
        assert 100.0 * figures["coverage_of_0.9_region"] == pytest.approx(shown, abs=6.0)
    shown = capsys.readouterr().out
    assert "coverage_of_0.9_region" in shown
    assert "better" in shown  # the comparison's verdict
