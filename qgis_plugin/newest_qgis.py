"""Runs every algorithm through qgis_process, opens what it wrote, and writes a page: `python3 newest_qgis.py WORK`.

It runs in the QGIS that newest_qgis.sh installs, with that system's Python, and imports only what that one has.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "sample_data"
PYTHON = "/opt/geo-mvmf/bin/python3"  # newest_qgis.sh writes it
SPHERE_KM = 6371.0088


class UnexpectedError(Exception):
    """An algorithm did not do what it promises."""


class Runner:
    """Runs algorithms as a shell user does: the request as JSON on standard input, the answer as JSON."""

    def __init__(self, work: Path) -> None:
        self.work = work
        profile = work / "profile"
        (work / "tmp").mkdir()
        profile.mkdir(mode=0o700)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(work),
            "LC_ALL": "C.UTF-8",
            "TMPDIR": str(work / "tmp"),  # what QGIS writes on its way is read by the worker, under the same name
            "QT_QPA_PLATFORM": "offscreen",
            "XDG_RUNTIME_DIR": str(profile),
            "QGIS_CUSTOM_CONFIG_PATH": str(profile),
            "QGIS_PLUGINPATH": str(HERE),
            "GEO_MVMF_PYTHON": PYTHON,
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count()),
        }
        self.program = shutil.which("qgis_process.bin") or shutil.which("qgis_process") or "qgis_process"
        self.call("plugins", "enable", "mvmf_locator")

    def call(self, *words: str, request: object = None) -> str:
        """Run qgis_process and give what it prints; raises UnexpectedError with what it said."""
        done = subprocess.run(
            [self.program, *words],
            input=None if request is None else json.dumps(request),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )
        if done.returncode:
            raise UnexpectedError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def run(self, name: str, **inputs: object) -> dict[str, object]:
        """Run one algorithm of the plugin and give its results."""
        values = {key: str(value) if isinstance(value, Path) else value for key, value in inputs.items()}
        answer = self.call("run", f"geomvmf:{name}", "-", request={"inputs": values})
        return json.loads(answer)["results"]


def check(found: object, expected: object, what: str) -> None:
    """Compare, and say what was found."""
    if found != expected:
        raise UnexpectedError(f"{what}: {found!r} instead of {expected!r}")


def layer_of(path: object, layer: str) -> object:
    """Open a layer of a file with QGIS."""
    from qgis.core import QgsVectorLayer

    source = str(path) if layer == "" else f"{path}|layername={layer}"
    opened = QgsVectorLayer(source, layer, "ogr")
    check(opened.isValid(), expected=True, what=f"{source} opens")
    return opened


def raster_of(path: object) -> object:
    """Open a raster with QGIS."""
    from qgis.core import QgsRasterLayer

    opened = QgsRasterLayer(str(path))
    check(opened.isValid(), expected=True, what=f"{path} opens")
    return opened


def probability_of(raster: object) -> float:
    """Add up density times area over a raster in degrees: row by row, on the sphere."""
    box, rows, columns = raster.extent(), raster.height(), raster.width()
    block = raster.dataProvider().block(1, box, columns, rows)
    step = box.height() / rows
    total = 0.0
    for row in range(rows):
        north = math.radians(box.yMaximum() - row * step)
        band = SPHERE_KM**2 * (math.sin(north) - math.sin(north - math.radians(step)))
        area = band * math.radians(box.width() / columns)
        total += area * math.fsum(block.value(row, column) for column in range(columns))
    return total


def check_environment(run: Runner) -> str:
    facts = str(run.run("checkenvironment")["DIAGNOSTICS"])
    if "not usable" in facts or "geo_mvmf" not in facts:
        raise UnexpectedError(f"the environment does not work:\n{facts}")
    (run.work / "diagnostics.md").write_text(facts, encoding="utf-8")
    return "nothing is missing"


def predict_photos(run: Runner) -> str:
    results = run.run(
        "predictphotos",
        FOLDER=SAMPLE / "chips",
        BUNDLE=SAMPLE / "relief.safetensors",
        POINTS=run.work / "points.gpkg",
        REGIONS=run.work / "regions.gpkg",
        PREDICTIONS=run.work / "album.nc",
    )
    check((results["COUNT"], results["FAILED"]), (49, 1), "COUNT, FAILED")
    points = layer_of(results["POINTS"], "points")
    with_point = [row for row in points.getFeatures() if row.hasGeometry()]
    check((points.featureCount(), len(with_point)), (49, 48), "rows, points")
    check({row["status"] for row in with_point}, {"ok"}, "status of the points")
    points.loadDefaultStyle()
    check(points.renderer().type(), "RuleRenderer", "style from the file")
    regions = layer_of(results["REGIONS"], "regions")
    check(regions.featureCount(), 96, "regions")
    invalid = [row["image_id"] for row in regions.getFeatures() if not row.geometry().isGeosValid()]
    check(invalid, [], "regions that are not valid")
    area = float(results["MEDIAN_AREA_90"])
    return f"49 rows, 48 with a point, 1 with its reason; 96 valid regions; median area of 90 %: {area:,.0f} km²"


def density_raster(run: Runner) -> str:
    results = run.run("densityraster", PREDICTIONS=run.work / "album.nc", OUTPUT=run.work / "density.tif")
    raster = raster_of(results["OUTPUT"])
    raster_of(results["LEVEL"])
    total = probability_of(raster)
    if abs(total - 1.0) > 1e-3:
        raise UnexpectedError(f"{results['OUTPUT']}: the probability adds up to {total}")
    return f"{raster.width()} x {raster.height()} raster cells, {raster.crs().authid()}, probability {total:.6f}"


def predict_raster(run: Runner) -> str:
    results = run.run(
        "predictraster",
        RASTER=SAMPLE / "chips" / "chip_03.tif",
        BUNDLE=SAMPLE / "relief.safetensors",
        POINTS=run.work / "scan.gpkg",
        PREDICTIONS=run.work / "scan.nc",
    )
    return f"{results['LONGITUDE']:.2f}°, {results['LATITUDE']:.2f}°; area of 90 %: {results['AREA_90']:,.0f} km²"


def credible_regions(run: Runner) -> str:
    results = run.run(
        "credibleregions",
        PREDICTIONS=run.work / "album.nc",
        IMAGE_IDS="chip_00.jpg;chip_01.png",
        LEVELS="0.5,0.8,0.95",
        OUTPUT=run.work / "more.gpkg",
    )
    check(layer_of(results["OUTPUT"], "regions").featureCount(), 6, "regions of two images")
    return "2 images, 3 levels: 6 regions"


def zone_probabilities(run: Runner) -> str:
    zones = SAMPLE / "countries.geojson"
    results = run.run(
        "zoneprobabilities", PREDICTIONS=run.work / "album.nc", ZONES=zones, OUTPUT=run.work / "zones.gpkg"
    )
    points = layer_of(results["OUTPUT"], "points")
    named = sum(bool(row["zone_1"]) for row in points.getFeatures() if row["status"] == "ok")
    check(named, 48, "points with a zone")
    zones = layer_of(results["OUTPUT"], "zones").featureCount()
    return f"48 points with their countries, the images expected in each of {zones} countries"


def fuse_predictions(run: Runner) -> str:
    results = run.run(
        "fusepredictions",
        PREDICTIONS=run.work / "album.nc",
        IMAGE_IDS="chip_00.jpg;chip_01.png",
        INDEPENDENCE=0.5,
        OUTPUT=run.work / "fused.nc",
        REGIONS=run.work / "fused.gpkg",
    )
    check(layer_of(results["REGIONS"], "regions").featureCount(), 2, "regions of one place")
    return "2 images to one place: 2 regions"


def evaluate(run: Runner) -> str:
    truth = run.work / "truth.csv"  # the album's images are named from its folder, those of the sample from above it
    text = (SAMPLE / "truth.csv").read_text(encoding="utf-8").replace("chips/", "")
    truth.write_text(text.replace("path,", "image_id,", 1), encoding="utf-8")
    results = run.run(
        "evaluate",
        PREDICTIONS=run.work / "album.nc",
        TRUTH=truth,
        REPORT=run.work / "report.html",
        TABLE=run.work / "figures.csv",
        OPEN=False,
    )
    page = Path(str(results["REPORT"])).read_text(encoding="utf-8")
    check("<html" in page.lower(), expected=True, what=f"{results['REPORT']} is a page")
    check(Path(str(results["TABLE"])).exists(), expected=True, what=f"{results['TABLE']} is there")
    return f"a report of {len(page) // 1000} kB and its table"


def learn(run: Runner) -> str:
    chips = run.run(
        "cutchips", RASTERS=[str(SAMPLE / "relief.tif")], GROUND_KM=2000, SIZE=32, COUNT=40, OUTPUT=run.work / "chips"
    )
    table = chips["TABLE"]
    trained = run.run(
        "trainmodel",
        TABLE=table,
        COMPONENTS=12,
        EPOCHS=1,
        BATCH_SIZE=8,
        OPTIONS="backbone_width = 8; pool = 2",
        OUTPUT=run.work / "run",
    )
    calibrated = run.run("calibrate", BUNDLE=trained["BUNDLE"], TABLE=table, OUTPUT=run.work / "calibrated.safetensors")
    size = Path(str(calibrated["OUTPUT"])).stat().st_size
    return f"40 chips cut, a toy model trained for one epoch on them and calibrated: a bundle of {size // 1000} kB"


STEPS = {
    "checkenvironment": check_environment,
    "predictphotos": predict_photos,
    "densityraster": density_raster,
    "predictraster": predict_raster,
    "credibleregions": credible_regions,
    "zoneprobabilities": zone_probabilities,
    "fusepredictions": fuse_predictions,
    "evaluate": evaluate,
    "cutchips, trainmodel, calibrate": learn,
}


def page_of(rows: list[tuple[str, str, float]], run: Runner) -> str:
    """Write what ran where, as Markdown."""
    from qgis.core import Qgis
    from qgis.PyQt.QtCore import QT_VERSION_STR

    release = Path("/etc/debian_version").read_text(encoding="utf-8").strip()
    facts = (run.work / "diagnostics.md").read_text(encoding="utf-8").strip().splitlines()
    facts = [line for line in facts if "executable" not in line]  # where a checkout lies is nobody's business
    lines = [
        "# The plugin in the newest QGIS",
        "",
        f"Every algorithm of the plugin, run by `qgis_process` of QGIS {Qgis.QGIS_VERSION} on the sample data: the",
        "request goes in as JSON, and what was written is opened with that QGIS.",
        "",
        "| algorithm | what came out | s |",
        "| --- | --- | --- |",
        *(f"| {name} | {said} | {seconds:.0f} |" for name, said, seconds in rows),
        "",
        "| circumstances |  |",
        "| --- | --- |",
        "| command | `make qgis-newest` |",
        f"| date | {time.strftime('%Y-%m-%d')} |",
        f"| QGIS | {Qgis.QGIS_VERSION}, Qt {QT_VERSION_STR}, Python {platform.python_version()} |",
        f"| system | Debian {release}, {platform.machine()} |",
        "",
        "What *Check environment* said there:",
        "",
        *facts,
    ]
    return "\n".join(lines) + "\n"


def main(work: Path) -> None:
    """Run all, or stop where something is wrong."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    from qgis.core import QgsApplication

    application = QgsApplication([], False)
    application.initQgis()
    run = Runner(work)
    rows = []
    for name, step in STEPS.items():
        begun = time.monotonic()
        said = step(run)
        rows.append((name, said, time.monotonic() - begun))
        print(f"{name}: {said}", flush=True)
    (work / "qgis_newest.md").write_text(page_of(rows, run), encoding="utf-8")
    application.exitQgis()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
