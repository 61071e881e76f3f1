"""Scorers: attempts and their grades, restart phrases, degradation."""
