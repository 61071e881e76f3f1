"""Inspect tasks, one module per experiment."""

from esr_eval.tasks.calibrate import calibrate
from esr_eval.tasks.esr import esr
from esr_eval.tasks.held_out import held_out
from esr_eval.tasks.prefill import prefill_control
from esr_eval.tasks.prompting import meta_prompt
from esr_eval.tasks.sweep import boost_sweep

__all__ = ["boost_sweep", "calibrate", "esr", "held_out", "meta_prompt", "prefill_control"]
