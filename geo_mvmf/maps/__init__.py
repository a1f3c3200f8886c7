"""Views of a mixture: rasters, points and regions."""
