"""Configuration of experiments, a Hydra config package; the wheel has none of it."""
