"""Evaluations of Endogenous Steering Resistance (arXiv 2602.06941) as Inspect tasks."""
