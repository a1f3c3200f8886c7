"""Reports: one self-contained HTML page of text, pictures and tables.

Every picture is inside the page, and nothing is loaded from elsewhere. File text is escaped before it reaches the page.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geo_mvmf import durable

if TYPE_CHECKING:
    from geo_mvmf.evaluation import Evaluation

_LIMITS = (
    "A prediction is a region, not a proof. The point alone says little; read it with its credible region, and "
    "remember that a model knows only the kind of images, and the places, that it was trained on."
)
# Wide things scroll by themselves on a phone; pictures keep their white paper in the dark.
_STYLE = """
:root{color-scheme:light dark;--text:#222;--soft:#555;--line:#ddd;--note:#f5f1f5;--mark:#7a0177;--page:#fff}
@media(prefers-color-scheme:dark){
:root{--text:#e6e6e6;--soft:#b0b0b0;--line:#444;--note:#2b242b;--mark:#d58bd2;--page:#1b1b1d}}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
body{color:var(--text);background:var(--page)}
h1{font-size:1.7rem;line-height:1.25}h2{font-size:1.2rem;font-weight:600;margin:2.2rem 0 .5rem}
h3{font-size:1rem;font-weight:600;margin:1.2rem 0 .3rem}
figure{margin:.6rem 0;overflow-x:auto}figcaption{color:var(--soft);font-size:.9rem;margin:.3rem 0 1rem}
img{display:block;max-width:100%;height:auto;background:#fff;border-radius:4px}
.note{background:var(--note);border-left:4px solid var(--mark);padding:.6rem 1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}td.number,th.number{text-align:right;white-space:nowrap}
td:last-child{overflow-wrap:anywhere}
@media(max-width:40rem){img.map{max-width:none;width:44rem}td.text:last-child{min-width:12rem}}
"""
_WIDE_PIXELS = 1000  # pictures from this width on are maps, which a phone shows in parts
_SHARE = re.compile(r"(accuracy_at|coverage_of)_([0-9.]+)_(km|region)")
_MEASURES = {
    "median_error_km": ("Median error", ",.0f", "km", ""),
    "mean_error_km": ("Mean error", ",.0f", "km", ""),
    "geo_score": ("GeoScore (0 to 5000)", ",.0f", "", ""),
    "mean_searched_probability": ("Probability searched before the truth, mean", "%", "%", "calibrated: 50 %"),
    "median_searched_area_km2": ("Area searched before the truth, median", ",.0f", "km²", ""),
    "mean_expected_error_km": ("Error the densities expect, mean", ",.0f", "km", "calibrated: the mean error"),
    "nll_nats": ("Negative log-likelihood", ".2f", "nats", f"uniform: {np.log(4.0 * np.pi):.2f} nats"),
    "nll_of_training_density_nats": ("The same of the training images' density", ".2f", "nats", ""),
    "gain_over_training_density_nats": ("Gain over the training images' density", ".2f", "nats", "no use: 0 nats"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """A part of a page about one question.

    Parameters
    ----------
    heading : str
    paragraphs : sequence of str
        Plain text.
    pictures : sequence of (caption, PNG bytes)
    tables : sequence of (caption, DataFrame)
        An empty caption is left out.

    Examples
    --------
    >>> Section("Curves", ["The loss falls."]).tables
    ()
    """

    heading: str
    paragraphs: Sequence[str] = ()
    pictures: Sequence[tuple[str, bytes]] = ()
    tables: Sequence[tuple[str, pd.DataFrame]] = ()


def figures(evaluation: Evaluation) -> pd.DataFrame:
    """Put the figures of an evaluation into words, beside what they compare with.

    Parameters
    ----------
    evaluation : Evaluation

    Returns
    -------
    DataFrame
        Text: Group (where there are groups), Measure, Value, 95 % interval, To compare (a uniform guess, or what a
        calibrated model has), the number of Images, and how many of them are Without a prediction (where any is). The
        exact numbers are in `Evaluation.table`.

    Examples
    --------
    >>> from geo_mvmf.evaluation import Evaluation
    >>> names, error_km = np.array(["a", "b"], object), np.array([12.0, 340.0])
    >>> searched, group = np.array([0.2, 0.7]), np.full(2, "", object)
    >>> table = figures(Evaluation(names, error_km, np.zeros(2), searched, error_km, group))
    >>> table.columns.tolist()
    ['Measure', 'Value', '95 % interval', 'To compare', 'Images']
    """
    several = bool(evaluation.other_errors_km)
    rows = []
    for group, measure, estimator, value, low, high, n, n_nan in evaluation.table().to_numpy(object).tolist():
        name, form, unit, compare = _in_words(measure, evaluation)
        name = f"{name}, {estimator}" if several and estimator else name
        shown = _with_unit(_number(form, value), unit)
        rows.append((group, name, shown, _interval(form, low, high, unit), compare, n, n_nan))
    names = ["Group", "Measure", "Value", "95 % interval", "To compare", "Images", "Without a prediction"]
    table = pd.DataFrame(rows, columns=names)
    unused = {"Group": table["Group"].nunique() < 2, names[-1]: (table[names[-1]] == 0).all()}
    return table.drop(columns=[name for name, is_unused in unused.items() if is_unused])


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    introduction: Sequence[str] = (),
    pictures: Sequence[tuple[str, bytes]] = (),
    tables: Sequence[tuple[str, pd.DataFrame]] = (),
    sections: Sequence[Section] = (),
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write one self-contained HTML page: text, pictures, tables, the run's options and the limits.

    Parameters
    ----------
    path : path
        Ends in .html.
    title : str
        Heading of the page.
    introduction : sequence of str
        Paragraphs of plain text.
    pictures : sequence of (heading, PNG bytes)
    tables : sequence of (heading, DataFrame)
    sections : sequence of Section
        Behind these, in their order.
    run : mapping, optional
        Key and value of what made this page.
    overwrite : bool
        Whether an existing page may be replaced.

    Raises
    ------
    OutputError
        If the page exists or cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> page = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> write_page(page, title="<b>Album</b>")
    >>> "&lt;b&gt;Album" in page.read_text()
    True
    """
    parts = [f"<h1>{_text(title)}</h1>"]
    parts += [f"<p>{_text(paragraph)}</p>" for paragraph in introduction]
    parts.append(f'<p class="note">{_text(_LIMITS)}</p>')
    parts += [_picture_html(heading, picture) for heading, picture in pictures]
    parts += [f"<h2>{_text(heading)}</h2>{_table_html(frame)}" for heading, frame in tables]
    parts += [_section_html(section) for section in sections]
    if run:
        made = pd.DataFrame({"Option": sorted(run)}).assign(Value=lambda table: [run[key] for key in table["Option"]])
        parts.append(f"<h2>How this was made</h2>{_table_html(made.astype(str))}")
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    durable.write_text(path, page, overwrite=overwrite)


def _in_words(measure: str, evaluation: Evaluation) -> tuple[str, str, str, str]:
    """Name, format, unit and what to compare with."""
    share = _SHARE.fullmatch(measure)
    if share and share[1] == "accuracy_at":
        chance = float(evaluation.chance(float(share[2])))
        shown = "below 0.1 %" if chance < 1e-3 else f"{100.0 * chance:.2g} %"
        return f"Within {_number(',.0f', float(share[2]))} km", "%", "%", f"chance: {shown}"
    if share:
        level = f"{100.0 * float(share[2]):g} %"
        return f"Truth inside the {level} region", "%", "%", f"calibrated: {level}"
    return _MEASURES.get(measure, (measure.replace("_", " "), ".4g", "", ""))


def _interval(form: str, low: float, high: float, unit: str) -> str:
    if not np.isfinite([low, high]).all():
        return ""
    return _with_unit(f"{_number(form, low)} to {_number(form, high)}", unit)


def _number(form: str, value: float) -> str:
    if not np.isfinite(value):
        return "unknown"
    return f"{100.0 * value:.1f}" if form == "%" else f"{value:{form}}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _with_unit(text: str, unit: str) -> str:
    return f"{text}\N{NO-BREAK SPACE}{unit}" if unit else text


def _text(value: object) -> str:
    # names of files that are no UTF-8 hold surrogates, which no page can
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def _table_html(frame: pd.DataFrame) -> str:
    kinds = ["number" if pd.api.types.is_numeric_dtype(frame.iloc[:, i]) else "text" for i in range(frame.shape[1])]
    head = "".join(f'<th class="{kind}">{_text(name)}</th>' for kind, name in zip(kinds, frame.columns, strict=True))
    rows = [
        "".join(f'<td class="{kind}">{_cell(value)}</td>' for kind, value in zip(kinds, row, strict=True))
        for row in frame.itertuples(index=False, name=None)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)) or value is pd.NA:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def _section_html(section: Section) -> str:
    parts = [f"<h2>{_text(section.heading)}</h2>", *(f"<p>{_text(text)}</p>" for text in section.paragraphs)]
    parts += [_figure_html(caption, picture, shown=True) for caption, picture in section.pictures]
    for caption, frame in section.tables:
        parts.append((f"<h3>{_text(caption)}</h3>" if caption else "") + _table_html(frame))
    return f"<section>{''.join(parts)}</section>"


def _picture_html(heading: str, picture: bytes) -> str:
    return f"<h2>{_text(heading)}</h2>{_figure_html(heading, picture, shown=False)}"


def _figure_html(caption: str, picture: bytes, *, shown: bool) -> str:
    data = base64.b64encode(picture).decode("ascii")
    kind = "map" if int.from_bytes(picture[16:20], "big") >= _WIDE_PIXELS else "chart"  # the width in a PNG's header
    text = _text(caption)
    image = f'<img class="{kind}" alt="{text}" src="data:image/png;base64,{data}">'
    below = f"<figcaption>{text}</figcaption>" if shown else ""
    return f"<figure>{image}{below}</figure>"
