"""What every experiment writes: a page, a table and a picture in docs/experiments, and the circumstances."""

from __future__ import annotations

import datetime as dt
import io
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from geo_mvmf import durable

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "experiments"
_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "rasterio")


def write(name: str, text: str, table: pd.DataFrame, figure: Figure, facts: Mapping[str, str]) -> None:
    """Write NAME.md, NAME.csv and NAME.png; the page ends with the circumstances."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    durable.write_text(RESULTS / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"), overwrite=True)
    durable.write_bytes(RESULTS / f"{name}.png", png(figure), overwrite=True)
    durable.write_text(RESULTS / f"{name}.md", f"{text.strip()}\n\n{circumstances(facts)}\n", overwrite=True)
    print(f"wrote {RESULTS / name}.md, .csv and .png")


def png(figure: Figure) -> bytes:
    """Draw a figure, with the same bytes for the same picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def reading(text: str, *, was_read: bool) -> str:
    """What somebody read from the run of scale small that is kept with the project; of another run nobody did."""
    title = "## Reading (of the run that is kept here)"
    return f"{title}\n\n{text.strip()}" if was_read else "Nobody has read this run yet: see the tables."


def rows(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Lay a table out in Markdown."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, ["---"] * len(head), *lines])


def circumstances(facts: Mapping[str, str]) -> str:
    """What a reader needs to do it again."""
    versions = ", ".join(f"{library} {metadata.version(library)}" for library in _LIBRARIES)
    arguments = [Path(each).name if each.startswith("/") else each for each in sys.argv[1:]]  # not where it was run
    command = " ".join(["python", f"experiments/{Path(sys.argv[0]).name}", *arguments])
    found = {
        "command": f"`{command}`",
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "machine": f"{cpu()}, {os.cpu_count()} cores; load {os.getloadavg()[2]:.1f}",
        "versions": f"Python {platform.python_version()}, {versions}",
        **facts,
    }
    return rows(("circumstances", ""), list(found.items()))


def inputs(*paths: Path) -> str:
    """Name files by what they contain."""
    return "; ".join(f"{path.name} {durable.file_sha256(path)[:16]}" for path in paths) + " (SHA-256, first 16)"


def cpu() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
