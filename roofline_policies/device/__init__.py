"""The device: its ceilings, what NVML says of it, what it was measured to reach, and its roofline."""
