"""From configuration files and overrides to checked settings and policy objects."""
