"""geo_mvmf: a picture goes in, a normalised probability density over the Earth comes out, as GIS layers.

The public names are loaded when they are first used, so importing the package costs nothing and never imports
torch; only what trains or runs a network does.

Examples
--------
>>> import geo_mvmf
>>> mixture = geo_mvmf.VmfMixture([[1.0, 0.0, 0.0]], [16.0], [[0.0]])
>>> geo_mvmf.estimate(mixture).tolist()
[[0.0, 0.0]]
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "CellMixture": "geo_mvmf.mixture",
    "Frame": "geo_mvmf.maps.frames",
    "Grid": "geo_mvmf.maps.grid",
    "MvmfHead": "geo_mvmf.model.heads",
    "Partition": "geo_mvmf.model.classes",
    "Predictions": "geo_mvmf.predictions",
    "VmfMixture": "geo_mvmf.mixture",
    "accuracy_at_km": "geo_mvmf.metrics",
    "best_modes": "geo_mvmf.maps.peaks",
    "calibrate": "geo_mvmf.model.calibration",
    "cell_area_km2": "geo_mvmf.maps.density",
    "compare": "geo_mvmf.comparison",
    "credible_regions": "geo_mvmf.maps.regions",
    "density_raster": "geo_mvmf.maps.density",
    "estimate": "geo_mvmf.maps.estimates",
    "evaluate": "geo_mvmf.evaluation",
    "fuse": "geo_mvmf.maps.evidence",
    "great_circle_distance_km": "geo_mvmf.sphere",
    "initial_log_concentrations": "geo_mvmf.model.classes",
    "load_bundle": "geo_mvmf.model.bundle",
    "mvmf_loss": "geo_mvmf.model.loss",
    "open_predictions": "geo_mvmf.predictions",
    "partition_by_file": "geo_mvmf.model.given_classes",
    "partition_by_kmeans": "geo_mvmf.model.kmeans",
    "partition_by_thresholds": "geo_mvmf.model.partition",
    "partition_sphere": "geo_mvmf.model.partition",
    "predict": "geo_mvmf.predicting",
    "read_image_table": "geo_mvmf.inputs.tables",
    "restrict": "geo_mvmf.maps.evidence",
    "to_directions": "geo_mvmf.sphere",
    "train": "geo_mvmf.model.training",
    "write_method_predictions": "geo_mvmf.method_predictions",
    "zone_probabilities": "geo_mvmf.maps.zones",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604 (a list of text, made from the table)


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'geo_mvmf' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return list(__all__)
