"""Service-level objectives: targets, when tokens are due, and the order in which prompts are admitted."""
