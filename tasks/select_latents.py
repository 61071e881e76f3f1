"""Choice of latents (paper, experimental setup): concrete labels, irrelevant to the tasks."""

import math
from typing import Annotated

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState
from pydantic import Field

from esr_eval.checks import Wanted
from esr_eval.data.arguments import PERCENT, Number, Seed, Topics, checked
from esr_eval.data.experiments import display_name, tags
from esr_eval.dataset import choose_prompts, labels_note, load_latents
from esr_eval.errors import EsrError
from esr_eval.scorers.concreteness import CONCRETENESS_RUBRIC_VERSION
from esr_eval.scorers.scores import headlines
from esr_eval.selection.rules import REASONS, Finding, check_rule, draw_candidates
from esr_eval.selection.survey import FINDING, survey_candidates
from esr_eval.tasks.experiment import Setup, latents_to_choose

VERSION = 1
PAPER = {
    "paper": "arXiv:2602.06941",
    "section": "choice of latents",
    "deviations": [
        "The judge's instructions are in this project's own words.",
        "The rule `zero` is stricter than the paper's `top100`.",
    ],
}


@task
@checked
def select_latents(
    latents: str | None = None,
    wanted: Number | None = None,
    factor: Annotated[float, Field(ge=1)] = 3,
    min_concreteness: Annotated[float, PERCENT] = 65,
    rule: str = "zero",
    topics: Topics = None,
    seed: Seed = 0,
) -> Task:
    """Test labelled latents: one sample is one candidate, kept or rejected with its reason.

    Run it as `esr-eval latents select NAME -o labels.csv`, which writes the latents that are kept.
    Positions before the runtime's `skip_first` are left out; `-M skip_first=1` leaves out the
    begin-of-text token, at which thousands of latents fire and mean nothing.

    Args:
        latents: File of labels (CSV index_in_sae,label, or a Neuronpedia export, also a
            folder of its batches). Default: the subject's own.
        wanted: How many latents the run needs. Default: every candidate that passes; of a whole
            SAE's labels 20.
        factor: Candidates drawn at random for each one wanted (paper: 3).
        min_concreteness: Lowest concreteness of a label, 0-100 by the judge (paper: 65).
        rule: Irrelevant is what is silent on every task prompt (`zero`), or not among the 100
            most active latents of any (`top100`).
        topics: Topics of the tasks that latents must have nothing to do with, of the 38. Default:
            all.
        seed: Seed of the draw of candidates.
    """
    chosen_rule = check_rule(rule)
    setup = Setup.open(Wanted(labels=True, latents=latents))
    subject = setup.provider.subject
    if setup.provider.runtime.feature_layer is None:
        raise EsrError("Say which layer the SAE was trained on, to read there: -M feature_layer=.")
    asked = choose_prompts(topics)
    labelled = load_latents(subject, latents, setup.provider.runtime)
    setup.provider.check_latents([latent.index for latent in labelled])
    if wanted is None:  # a whole SAE's labels would take thousands of judge calls
        wanted = latents_to_choose(setup.provider, latents, None)
    candidates = draw_candidates(labelled, wanted, factor, seed)
    samples = [
        Sample(
            id=f"latent-{latent.index}",
            input=f"Is latent {latent.index} ({latent.label}) fit to be boosted?",
            metadata={"latent": latent.index, "label": latent.label},
        )
        for latent in candidates
    ]
    return Task(
        dataset=MemoryDataset(samples, name="esr-candidates"),
        solver=survey_candidates(
            [latent.index for latent in candidates],
            [latent.label for latent in candidates],
            [prompt.model_dump() for prompt in asked],
        ),
        scorer=selection(chosen_rule, min_concreteness),
        config=GenerateConfig(max_connections=setup.provider.max_connections()),
        version=VERSION,
        display_name=display_name("choice of latents", subject.name),
        tags=tags("select_latents", subject.name, str(setup.judge)),
        metadata={
            **PAPER,
            "subject": subject.name,
            "judge": str(setup.judge),
            "rubric": CONCRETENESS_RUBRIC_VERSION,
            "skip_first": setup.provider.runtime.skip_first,
            "rule": chosen_rule,
            "min_concreteness": min_concreteness,
            "task_prompts": len(asked),
            "labelled": len(labelled),
            **labels_note(subject, latents, setup.provider.runtime),
            "wanted": wanted,
        },
    )


@scorer(
    metrics=[
        headlines(("kept", "concreteness", "concrete", "relevant", "max_activation"), ("unscored",))
    ]
)
def selection(rule: str = "zero", min_concreteness: float = 65) -> Scorer:
    """Whether a candidate is kept; needs no model, so other thresholds cost nothing.

    Args:
        rule: `zero` or `top100`, as in `select_latents`.
        min_concreteness: Lowest concreteness of a label.
    """
    chosen_rule = check_rule(rule)

    async def score(state: TaskState, target: Target) -> Score:
        finding = Finding.model_validate(state.store.get(FINDING))
        rejection = finding.rejection(chosen_rule, min_concreteness)
        unrated = finding.concreteness is None
        concreteness = math.nan if finding.concreteness is None else finding.concreteness
        return Score(
            value={
                "kept": int(rejection is None),
                "concreteness": concreteness,
                "concrete": math.nan if unrated else int(concreteness >= min_concreteness),
                "relevant": int(finding.relevant(chosen_rule)),
                "max_activation": finding.activity.max_activation,
                "unscored": int(unrated),
            },
            answer="kept" if rejection is None else f"rejected: {rejection}",
            explanation=f"{'Kept' if rejection is None else REASONS[rejection].capitalize()}. "
            f"{state.output.completion}",
            metadata={"rejection": rejection, **finding.activity.model_dump(mode="json")},
        )

    return score
