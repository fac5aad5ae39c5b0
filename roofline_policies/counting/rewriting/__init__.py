"""From the source of a kernel to source that counts what it executes."""
