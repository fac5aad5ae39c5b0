"""The kernels of installed packages: found, imported and surveyed."""
