"""The public surface as somebody else's code uses it, checked by mypy and run by a test."""
