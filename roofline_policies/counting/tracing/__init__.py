"""What rewritten source calls while Triton traces it."""
