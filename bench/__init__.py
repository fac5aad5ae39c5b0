"""Measurement: traffic replayed against real SGLang servers, arm by arm, and the report of it."""
