"""What every benchmark writes down: the command, the machine, the versions, its figures with their spread."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
_LIBRARIES = ("geo-mvmf", "torch", "torchvision", "numpy", "scipy", "pandas", "h5py", "pillow")


class Cost(NamedTuple):
    """Seconds on the wall and of all cores of this process."""

    wall: float
    cpu: float


def cost(work: Callable[[], object]) -> Cost:
    """Run something once and measure it."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def interleaved(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[Cost]]:
    """Measure several things in turn, in another order each time, so that a busy minute hits all alike."""
    found: dict[str, list[Cost]] = {name: [] for name in works}
    names = list(works)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(cost(works[name]))
            print(f"  repeat {repeat + 1}/{repeats} {name}: {found[name][-1].wall:.3f} s wall", file=sys.stderr)
    return found


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median and range."""
    middle, low, high = (f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} .. {high})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def peak_kib() -> int:
    """Most memory that this process has ever held, KiB (VmHWM; ru_maxrss would count its parent's)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def write(name: str, title: str, body: str, *, device: str = "no GPU used") -> Path:
    """Write a result file and print it."""
    text = f"# {title}\n\n{body.strip()}\n\n{_circumstances(device)}\n"
    path = RESULTS / f"{name}.md"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)
    return path


def _circumstances(device: str) -> str:
    script = Path(sys.argv[0])
    arguments = [Path(each).name if each.startswith("/") else each for each in sys.argv[1:]]  # not where it was run
    command = " ".join(["python", f"benchmarks/{script.name}", *arguments])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    load = os.getloadavg()
    rows = [
        ("command", f"`{command}`"),
        ("date", dt.datetime.now(dt.UTC).strftime("%Y-%m-%d")),
        ("machine", f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {_memory_gib():.0f} GiB, {device}"),
        ("load while it ran", f"{load[0]:.1f} (1 minute), {load[2]:.1f} (15 minutes); own work included"),
        ("versions", f"Python {platform.python_version()}, {versions}"),
    ]
    return table(("circumstances", ""), rows)


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "CPU")


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
