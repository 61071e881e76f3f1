"""The report's sections: each a function from the evidence to a section, or None without data.

A new one goes into `SECTIONS`, in the order of the page.
"""

from collections.abc import Callable

from esr_eval.report.section import Evidence, Section
from esr_eval.report.sections import (
    activations,
    agreement,
    detectors,
    distributions,
    finetuning,
    latents,
    overview,
    paired,
    published,
    second_view,
    sweep,
)

SECTIONS: tuple[Callable[[Evidence], Section | None], ...] = (
    overview.section,
    second_view.section,
    paired.section,
    finetuning.section,
    published.section,
    distributions.section,
    sweep.section,
    latents.section,
    detectors.section,
    activations.section,
    agreement.section,
)
