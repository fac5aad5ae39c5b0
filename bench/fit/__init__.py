"""Fits of the predictor to measurements, and how far off they are."""
