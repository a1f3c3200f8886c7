"""Commands that say what something is: info, env."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from geo_mvmf.commands import options

RESPONSIBLE_USE_PAGE = "docs/responsible_use.md"


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def info(*, file: Path) -> None:
    """Say what a bundle or a predictions file is, without loading torch."""
    from geo_mvmf.model import bundle_format

    if file.suffix.lower() == ".nc":
        from geo_mvmf.predictions import open_predictions

        found = open_predictions(file)
        content: dict[str, Any] = {**found.run, "status": options.counts(found.rows["status"])}
        content["responsible_use"] = bundle_format.RESPONSIBLE_USE
    else:
        content = bundle_format.read_header(file)  # with the statement of whoever made the bundle
    # one JSON document, for programs too
    content["responsible_use_page"] = RESPONSIBLE_USE_PAGE
    click.echo(json.dumps(content, indent=2, default=str, ensure_ascii=False))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def env(*, as_json: bool) -> None:
    """Say which Python, libraries and devices are in use."""
    from geo_mvmf.environment import describe

    content = describe()
    if as_json:
        click.echo(json.dumps(content))
        return
    for key, value in content.items():
        click.echo(f"{key:<12} {value}")
