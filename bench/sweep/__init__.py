"""Grids of virtual experiments: one result per cell and arm, kept on disk, and what they say together."""
