"""The model: what a batch of rows computes and moves, from the shapes of its layers."""
