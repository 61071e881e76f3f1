"""Servers on loopback, each in an environment of its own."""
