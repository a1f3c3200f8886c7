"""Write the plugin as a zip file that QGIS installs: `python qgis_plugin/package.py [folder] [--release]`.

With --release nothing is written while metadata.txt has addresses that are none; docs/qgis.md says which and why.
"""

from __future__ import annotations

import argparse
import configparser
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "mvmf_locator"
SUFFIXES = {".py", ".svg", ".txt", ".qm"}
ADDRESSES = ("email", "repository", "tracker", "homepage")
DATE = (2026, 1, 1, 0, 0, 0)  # of every file, so that the same sources give the same bytes


def contents() -> list[Path]:
    """List the files that belong into the package."""
    found = [path for path in (HERE / NAME).rglob("*") if path.suffix in SUFFIXES or path.name == "LICENSE"]
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def metadata() -> configparser.SectionProxy:
    """Read what the plugin says of itself, as the plugin repository does: % would be special."""
    about = configparser.ConfigParser()
    about.read(HERE / NAME / "metadata.txt", encoding="utf-8")
    return about["general"]


def placeholders(general: Mapping[str, str]) -> list[str]:
    """List the addresses that nobody answers (example.org is reserved for examples)."""
    return [name for name in ADDRESSES if "example.org" in general[name]]


def write(folder: Path) -> Path:
    """Write the package; its name holds the version that metadata.txt says."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{NAME}-{metadata()['version']}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as package:
        for path in contents():
            entry = zipfile.ZipInfo(path.relative_to(HERE).as_posix(), DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16  # nothing in it is a program
            package.writestr(entry, path.read_bytes())
    return target


def main() -> None:
    """Write the package, and say what it still lacks to be published."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE.parent / "dist")
    parser.add_argument("--release", action="store_true")
    options = parser.parse_args()
    missing = placeholders(metadata())
    if missing:
        said = f"{NAME}/metadata.txt: {', '.join(missing)}: no real address yet, so it cannot be published"
        if options.release:
            parser.error(said)
        print(said, file=sys.stderr)
    print(write(options.folder))


if __name__ == "__main__":
    main()
