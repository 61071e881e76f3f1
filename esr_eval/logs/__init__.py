"""Stored logs: which count, what ran, one row per trial, arrays beside them."""
