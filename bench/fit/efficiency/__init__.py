"""Kernel efficiencies of a device, fitted to tables of measured kernel times."""
