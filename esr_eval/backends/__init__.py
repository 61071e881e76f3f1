"""Engines that generate with interventions: one module per way of running a model."""
