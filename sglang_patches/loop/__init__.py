"""Observe, decide and actuate inside a scheduler process, and a new policy while it runs."""
