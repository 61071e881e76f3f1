"""The strength search, run on a real model and judge.

Arithmetic is `bisection`'s or `curve`'s, files are `store`'s; here is what lies between: which
tasks a round asks, how its answers become evidence, and how an interrupted search goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Self

from inspect_ai.model import CachePolicy, Model, ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect, display_counter, span

from esr_eval.calibration import store
from esr_eval.calibration.bisection import MAX_EMPTY_ROUNDS, Round, Search
from esr_eval.calibration.methods import begin
from esr_eval.calibration.residual import strength_unit
from esr_eval.calibration.store import Checkpoint, Setting, StrengthRecord
from esr_eval.dataset import Latent, Prompt, draw_tasks, prompts
from esr_eval.errors import EsrError
from esr_eval.scorers.attempts import ask, scores_of
from esr_eval.scorers.grader import grader_model
from esr_eval.solvers import runtime_of, steering_config, subject_of
from esr_eval.spec import AddVector, Boost
from esr_eval.subjects import CalibrationPrior

CACHE = CachePolicy(expiry="1W", per_epoch=False, scopes={"esr_eval": version("esr-eval")})
"""An interrupted round's responses and verdicts are not asked for again."""
RECORD, SEARCH, CACHED = "strength_record", "strength_search", "strength_cached"
"""Keys of the sample store."""


@solver
def bisect(
    prior: CalibrationPrior,
    temperature: float,
    check_samples: int,
    seed: int,
    fresh: bool,
    n_latents: int,
) -> Solver:
    """Search one latent's strength, or take it from the cache.

    Args:
        prior: Prior and effort.
        temperature: Of the responses.
        check_samples: Fresh responses at the final strength.
        seed: Seed of tasks and samplers.
        fresh: Search even where a strength is known.
        n_latents: How many latents there are in all, for the progress display.
    """
    rounds_done: dict[int, int] = {}
    most = begin(prior).most_rounds

    def progress(latent: int, counted: int) -> None:
        rounds_done[latent] = counted
        display_counter("Rounds", f"{sum(rounds_done.values())}/{n_latents * most}")

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        latent = Latent.model_validate(
            {"index": state.metadata["latent"], "label": state.metadata["label"]}
        )

        def on_round(so_far: Search) -> None:
            state.store.set(SEARCH, so_far.to_json())
            progress(latent.index, so_far.counted)

        search = StrengthSearch.of(
            model,
            latent,
            boost_at(model, latent),
            prior,
            temperature,
            check_samples,
            seed,
            scale=await strength_unit(model, latent, prior),
        )
        record = None if fresh else store.find_strength(search.key, subject_of(model).strengths)
        state.store.set(CACHED, record is not None)
        if record is not None:
            progress(latent.index, most)
        else:
            record = await search.run(resume=not fresh, on_round=on_round)
            if record is not None:
                store.save(record)
        state.store.set(RECORD, record.model_dump(mode="json") if record else None)
        return with_answer(state, record)

    return solve


def boost_at(model: Model, latent: Latent) -> Callable[[float], Boost]:
    """A boost of the latent at the model's steering layer, by its strength.

    Raises:
        EsrError: The model has no steering layer.
    """
    layer = runtime_of(model).steering_layer
    if layer is None:
        raise EsrError("The model has no steering layer: name one with -M steering_layer=.")
    return lambda strength: Boost(latent=latent.index, strength=strength, layer=layer)


def with_answer(state: TaskState, record: StrengthRecord | None) -> TaskState:
    """The sample with what its search found as the model's answer, for the log viewer."""
    text = (
        record.as_markdown()
        if record
        else f"No strength: {MAX_EMPTY_ROUNDS + 1} rounds stayed unjudged."
    )
    state.output = ModelOutput.from_content(str(get_model()), text)
    state.messages.append(state.output.message)
    return state


def round_plan(
    asked: Sequence[Prompt], samples: int, seed: int, latent: int, number: int
) -> list[tuple[Prompt, int]]:
    """Tasks and sampling seeds of one round.

    They depend on nothing but the arguments, so that an interrupted search goes on exactly as it
    would have gone on, and one latent's rounds do not depend on the others'.
    """
    return draw_tasks(asked, samples, f"calibration-{seed}-{latent}-{number}")


@dataclass(frozen=True)
class StrengthSearch:
    """The search for the strength of one latent or vector.

    Attributes:
        model: The model under test.
        grader: The judge.
        setting: What the record is kept under.
        latent: Index and label of the latent, or of the vector in its file.
        edit: What adds it to the residual stream with a given strength.
        check_samples: Fresh responses at the final strength, to state the score it achieves.
        seed: Seed of tasks and samplers.
        scale: Strength that is one unit of the prior.
    """

    model: Model
    grader: Model
    setting: Setting
    latent: Latent
    edit: Callable[[float], Boost | AddVector]
    check_samples: int
    seed: int
    scale: float = 1.0

    @classmethod
    def of(
        cls,
        model: Model,
        latent: Latent,
        edit: Callable[[float], Boost | AddVector],
        prior: CalibrationPrior,
        temperature: float,
        check_samples: int,
        seed: int,
        vectors: str | None = None,
        scale: float = 1.0,
    ) -> Self:
        """The search on this model, by the judge of this run; see `Setting.of`."""
        grader = grader_model(str(model))
        setting = Setting.of(
            runtime_of(model),
            prior,
            str(grader),
            prompts=[prompt.text for prompt in prompts()],
            temperature=temperature,
            vectors=vectors,
        )
        return cls(model, grader, setting, latent, edit, check_samples, seed, scale)

    @property
    def key(self) -> str:
        """What its checkpoint and record are kept under."""
        return self.setting.key(self.latent.index, self.latent.label)

    async def run(
        self, *, resume: bool, on_round: Callable[[Search], None] = lambda search: None
    ) -> StrengthRecord | None:
        """Run the rounds that are left; the checkpoint stays until the caller drops it.

        Args:
            resume: Whether to go on from an interrupted search's checkpoint.
            on_round: Told the state before the first and after every round.

        Returns:
            The record; None when too many rounds stayed without judgement.
        """
        key, prior = self.key, self.setting.prior
        checkpoint = store.find_checkpoint(key, self.seed) if resume else None
        search = checkpoint.search if checkpoint else begin(prior)
        on_round(search)
        cache = resume and CACHE
        while not (search.finished or search.failed):
            number = len(search.rounds)
            tested = await self._test(
                f"round {number + 1}", search.next_strength, number, search.responses, cache
            )
            search = search.observe(tested.scores, tested.unscored)
            store.save_checkpoint(Checkpoint(key=key, seed=self.seed, search=search))
            on_round(search)
        if search.failed:
            # Kept, it would make every later try fail at once.
            store.drop_checkpoint(key)
            return None
        check = None
        if self.check_samples:
            check = await self._test("check", search.strength, -1, self.check_samples, cache)
        return StrengthRecord.of(
            self.setting,
            self.latent.index,
            self.latent.label,
            search,
            check=check,
            seed=self.seed,
            scale=self.scale,
        )

    async def _test(
        self, name: str, strength: float, number: int, samples: int, cache: bool | CachePolicy
    ) -> Round:
        plan = round_plan(prompts(), samples, self.seed, self.latent.index, number)
        added = strength * self.scale
        async with span(f"{name}: strength {added:.4g}"):
            scores = await collect(*(self._first_score(added, *asked, cache) for asked in plan))
        judged = tuple(score for score in scores if score is not None)
        return Round(strength=strength, scores=judged, unscored=len(scores) - len(judged))

    async def _first_score(
        self, strength: float, prompt: Prompt, sampler: int, cache: bool | CachePolicy
    ) -> float | None:
        """Score of the first attempt; None when it cannot be judged or nothing is attempted."""
        output = await self.model.generate(
            prompt.text,
            config=steering_config(
                self.model,
                edits=[self.edit(strength)],
                seed=sampler,
                max_tokens=self.setting.prior.max_tokens,
                temperature=self.setting.temperature,
            ),
            cache=cache,
        )
        if not output.completion.strip():
            return None
        verdict = await ask(self.grader, prompt.text, self.latent.label, output.completion, cache)
        scores = scores_of(verdict)
        return scores[0] if scores else None
