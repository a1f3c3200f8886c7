"""Write the plugin as a zip file that QGIS installs: `python qgis_plugin/package.py [folder]`."""

from __future__ import annotations

import configparser
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "mvmf_locator"
SUFFIXES = {".py", ".svg", ".txt", ".qm"}
DATE = (2026, 1, 1, 0, 0, 0)  # of every file, so that the same sources give the same bytes


def contents() -> list[Path]:
    """List the files that belong into the package."""
    found = [path for path in (HERE / NAME).rglob("*") if path.suffix in SUFFIXES or path.name == "LICENSE"]
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def write(folder: Path) -> Path:
    """Write the package; its name holds the version that metadata.txt says."""
    about = configparser.ConfigParser(interpolation=None)
    about.read(HERE / NAME / "metadata.txt", encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{NAME}-{about['general']['version']}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as package:
        for path in contents():
            entry = zipfile.ZipInfo(path.relative_to(HERE).as_posix(), DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16  # nothing in it is a program
            package.writestr(entry, path.read_bytes())
    return target


if __name__ == "__main__":
    print(write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "dist"))
