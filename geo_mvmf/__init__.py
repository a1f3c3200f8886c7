"""geo_mvmf: a picture goes in, a normalised probability density over the Earth comes out, as GIS layers."""

__version__ = "0.1.0"
