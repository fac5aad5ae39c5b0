"""The server that SGLang runs: its model, and how its steps are timed."""
