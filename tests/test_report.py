"""Pages and pictures."""

import io

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from geo_mvmf import report
from geo_mvmf.errors import OutputError


def raster():
    latitude, longitude = np.arange(89.5, -90, -1.0), np.arange(-179.5, 180, 1.0)
    values = np.exp(-((latitude[:, None] - 40) ** 2 + longitude**2) / 200)
    return xr.DataArray(values, dims=("latitude", "longitude"), coords={"latitude": latitude, "longitude": longitude})


def test_density_picture_shows_colour_where_the_probability_is():
    picture = Image.open(io.BytesIO(report.density_picture(raster(), estimate=(0.0, 40.0), truth=(3.0, 41.0))))
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[0] > 200
    assert (np.ptp(pixels, axis=2) > 60).any()


def test_a_projected_raster_is_refused():
    with pytest.raises(ValueError, match="geographic"):
        report.density_picture(raster().rename(latitude="y", longitude="x"))


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


def test_the_page_needs_nothing_from_outside(tmp_path):
    page = tmp_path / "r.html"
    report.write_page(page, title="t", pictures=[("p", report.density_picture(raster()))])
    assert "http" not in page.read_text()
    with pytest.raises(OutputError, match="exists already"):
        report.write_page(page, title="t")
