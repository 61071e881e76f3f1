"""Inspect tasks, one module per experiment."""

from esr_eval.tasks.ablation import ablation
from esr_eval.tasks.activations import activations
from esr_eval.tasks.boost_sweep import boost_sweep
from esr_eval.tasks.calibrate import calibrate
from esr_eval.tasks.calibrate_vectors import calibrate_vectors
from esr_eval.tasks.cross_judge import cross_judge
from esr_eval.tasks.detectors import detectors
from esr_eval.tasks.esr import esr
from esr_eval.tasks.finetuned import finetuned
from esr_eval.tasks.held_out import held_out
from esr_eval.tasks.injected_thought import injected_thought
from esr_eval.tasks.meta_prompt import meta_prompt
from esr_eval.tasks.passages import passages
from esr_eval.tasks.prefill_control import prefill_control
from esr_eval.tasks.protective import protective
from esr_eval.tasks.random_ablation import random_ablation
from esr_eval.tasks.select_latents import select_latents
from esr_eval.tasks.vectors import vectors

__all__ = [
    "ablation",
    "activations",
    "boost_sweep",
    "calibrate",
    "calibrate_vectors",
    "cross_judge",
    "detectors",
    "esr",
    "finetuned",
    "held_out",
    "injected_thought",
    "meta_prompt",
    "passages",
    "prefill_control",
    "protective",
    "random_ablation",
    "select_latents",
    "vectors",
]
