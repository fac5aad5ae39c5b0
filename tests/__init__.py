"""The tests, and what they share, importable by name."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""Of the checkout."""
