"""Formats and nothing else: vector layers, GeoTIFFs, stores."""
