"""Stored answers whose activations are read."""
