"""Inspect tasks, one module per experiment."""

from esr_eval.tasks.calibrate import calibrate
from esr_eval.tasks.esr import esr

__all__ = ["calibrate", "esr"]
