"""The scheduler's requests: who waits in which order, who runs, and how far each one is."""
