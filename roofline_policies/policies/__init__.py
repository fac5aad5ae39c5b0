"""Policies: view in, proposal out."""
