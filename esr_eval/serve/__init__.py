"""Servers on this machine for the remote backends, loopback only."""
