# SPDX-License-Identifier: GPL-2.0-or-later
"""The algorithms of the provider; their ids are names in people's models and scripts, and stay."""

from .checking import CheckEnvironment, Evaluate
from .learning import Calibrate, CutChips, TrainModel
from .maps import CredibleRegions, DensityRaster, FusePredictions, ZoneProbabilities
from .prediction import PredictPhotos, PredictRaster

ALGORITHMS = (
    PredictPhotos,
    PredictRaster,
    DensityRaster,
    CredibleRegions,
    ZoneProbabilities,
    FusePredictions,
    CutChips,
    TrainModel,
    Calibrate,
    Evaluate,
    CheckEnvironment,
)
"""All of them, in the order of a job."""
