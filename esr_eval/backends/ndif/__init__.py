"""The NDIF backend."""
