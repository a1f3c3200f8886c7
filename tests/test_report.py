"""Pages: whole, safe, and readable by people."""

import base64
import re

import numpy as np
import pandas as pd
import pytest

from geo_mvmf import report
from geo_mvmf.errors import OutputError
from geo_mvmf.evaluation import Evaluation

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_text_of_files_cannot_become_markup(tmp_path):
    page = tmp_path / "r.html"
    hostile = "<script>alert(1)</script><img src=x onerror=y>"
    report.write_page(
        page,
        title=hostile,
        introduction=[hostile],
        pictures=[(hostile, b"\x89PNG")],
        tables=[(hostile, pd.DataFrame({hostile: [hostile]}))],
        run={hostile: hostile},
    )
    text = page.read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert text.count("&lt;script&gt;") >= 8


def test_text_that_is_no_text_is_shown_and_stops_nothing(tmp_path):
    page = tmp_path / "r.html"
    report.write_page(page, title="a\ud800b")  # as in names of files that are no UTF-8
    assert "a\\ud800b" in page.read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_outside(tmp_path):
    page = tmp_path / "r.html"
    report.write_page(page, title="t", pictures=[("p", PNG)])
    sources = re.findall(r"(?:src|href|url)[=(][\"']?([^\"')>]*)", page.read_text())
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert "http" not in page.read_text()
    with pytest.raises(OutputError, match="exists already"):
        report.write_page(page, title="t")


def test_a_phone_and_a_dark_room_are_thought_of(tmp_path):
    report.write_page(tmp_path / "r.html", title="t", tables=[("T", pd.DataFrame({"a": [1]}))])
    text = (tmp_path / "r.html").read_text()
    assert "name='viewport'" in text
    assert "prefers-color-scheme:dark" in text
    assert '<div class="wide"><table>' in text


def test_numbers_stand_right_and_what_is_missing_is_empty(tmp_path):
    frame = pd.DataFrame({"name": ["a", None], "value": [1234.5678, np.nan]})
    report.write_page(tmp_path / "r.html", title="t", tables=[("T", frame)])
    text = (tmp_path / "r.html").read_text()
    assert '<td class="text">a</td><td class="number">1235</td>' in text
    assert '<td class="text"></td><td class="number"></td>' in text


def evaluated(groups):
    count = len(groups)
    error, searched = np.geomspace(10.0, 15000.0, count), np.linspace(0.0, 1.0, count)
    groups = np.array(groups, dtype=object)
    return Evaluation(np.arange(count).astype(str).astype(object), error, error / 5000, searched, error, groups)


def test_figures_are_in_words_with_units_and_something_to_compare():
    table = report.figures(evaluated([""] * 8)).set_index("Measure")
    assert "Group" not in table
    assert table.loc["Within 2\N{NARROW NO-BREAK SPACE}500 km", "To compare"] == "chance: 3.8 %"
    assert table.loc["Within 1 km", "Value"] == "0.0\N{NO-BREAK SPACE}%"
    assert table.loc["Within 1 km", "To compare"] == "chance: below 0.1 %"
    assert table.loc["Negative log-likelihood", "To compare"] == "uniform: 2.53 nats"
    assert table.loc["Median error", "95 % interval"].endswith("\N{NO-BREAK SPACE}km")
    assert (table["Images"] == 8).all()


def test_groups_have_a_column_and_unknown_figures_say_so():
    found = report.figures(evaluated(["a", "b", "b", "b"]))
    assert set(found["Group"]) == {"all", "a", "b"}
    name, none = np.array(["x"], dtype=object), np.array([np.nan])
    nothing = Evaluation(name, none, none, none, none, np.array([""], dtype=object))
    table = report.figures(nothing).set_index("Measure")
    assert table.loc["Median error", "Value"].startswith("unknown")
    assert table.loc["Median error", "95 % interval"] == ""
