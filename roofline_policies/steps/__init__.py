"""How long a scheduler iteration takes: predicted from a model, a device and what was measured."""
