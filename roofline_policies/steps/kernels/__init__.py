"""What one kernel takes: its coefficients, and its seconds from its shape and the ceilings."""
