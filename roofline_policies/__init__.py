"""Roofline-adaptive scheduling: count the work, place it on the roofline, choose the knobs."""
