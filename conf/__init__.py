"""Shipped configuration, a Hydra config package."""
