"""Service-level objectives: whose token is due when, who may enter, and who has lost its chance."""
