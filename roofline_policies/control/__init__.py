"""From observations to decisions: the controller, what holds its changes back, and what it tells about itself."""
