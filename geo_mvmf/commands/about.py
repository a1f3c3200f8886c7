"""Commands that say what something is: info, env."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from geo_mvmf.commands import options
from geo_mvmf.errors import BadBundleError
from geo_mvmf.terminal import Reporter

_DENSITIES = {"vmf": "mixtures of von Mises-Fisher components", "cell": "uniform on S2 cells"}
_SHOWN_IDS = 5
RESPONSIBLE_USE_PAGE = "docs/responsible_use.md"


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def info(report: Reporter, *, file: Path) -> None:
    """Say what a bundle or a predictions file is, without loading torch."""
    from geo_mvmf.inputs import mistaken
    from geo_mvmf.model import bundle_format

    if file.suffix.lower() == ".nc":
        from geo_mvmf.predictions import open_predictions

        found = open_predictions(file)
        components, names = found.store.components, found.rows["image_id"]
        content: dict[str, Any] = {
            "densities": _DENSITIES[components.kind],
            "num_components": len(components.mean_directions),
            **found.run,
            "status": options.counts(found.rows["status"]),
            "image_ids": [*names.head(_SHOWN_IDS), *["..."] * (len(names) > _SHOWN_IDS)],
            "columns": list(map(str, found.rows.columns)),
        }
        content["responsible_use"] = bundle_format.RESPONSIBLE_USE
    else:
        try:
            content = bundle_format.read_header(file)  # with the statement of whoever made the bundle
        except BadBundleError as error:
            if told := mistaken.folder_with(file, "predictions.nc"):
                raise BadBundleError(told) from error
            if file.suffix.lower() == ".safetensors" or not file.is_file():
                raise
            raise BadBundleError(f"{error}; bundles (.safetensors) and predictions files (.nc) are wanted") from error
    # one JSON document, for programs too
    content["responsible_use_page"] = RESPONSIBLE_USE_PAGE
    report.result(json.dumps(content, indent=2, default=str, ensure_ascii=False), facts=content)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def env(report: Reporter, *, as_json: bool) -> None:
    """Say which Python, libraries and devices are in use."""
    from geo_mvmf.environment import describe

    content = describe()
    lines = [f"{key:<12} {value}" for key, value in content.items()]
    report.result(json.dumps(content) if as_json else "\n".join(lines), facts=content)
