"""Storms: servers whose knobs all move at random, under mixed load, to see that every request is served."""
