"""Edits, readouts and sampling: what happens to a batch, wherever the model runs."""
