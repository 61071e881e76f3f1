"""Concept vectors: taken from texts, calibrated, kept in files."""
