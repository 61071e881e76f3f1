"""The 24 requests that every backend must answer alike."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from esr_eval.dataset import prompts
from esr_eval.spec import AddVector, Boost, Clamp, Readout, Runtime, Steering
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling

LAYER, LATER = 14, 20
N_TOKENS = 20
D_MODEL = 576


class Case(NamedTuple):
    name: str
    edits: tuple = ()
    readouts: tuple = ()
    sampled: bool = False
    prompt: str = ""
    tokens: int = N_TOKENS
    top_p: float | None = None
    top_k: int | None = None
    penalty: float = 1.1


def boost(latent=8, strength=50.0, layer=LAYER, **span):
    return Boost(latent=latent, strength=strength, layer=layer, **span)


def clamp(latent=20, value=30.0, layer=LAYER, **span):
    return Clamp(latent=latent, value=value, layer=layer, **span)


def vector(strength=40.0, **span):
    values = np.random.default_rng(5).normal(size=D_MODEL)
    values = tuple(float(np.float32(v)) for v in values / np.linalg.norm(values))
    return AddVector(vector=values, strength=strength, layer=LAYER, **span)


def cases() -> list[Case]:
    long = "Here are notes that I took, and a question at the end. " + " ".join(
        f"Note {i}: the {thing} on shelf {i} weighs {3 * i + 2} grams."
        for i, thing in enumerate(["cup", "book", "lamp", "shoe", "key", "jar"] * 6)
    )
    long += " What is the weight of the lamp on shelf 2?"
    short = "Answer with one word only: what colour is the sky?"
    read = tuple(
        Readout(latents=(8, 20, 300), layer=LAYER, reduce=how, positions=where)
        for how, where in (("max", "all"), ("mean", "generated"), ("rate", "prompt"))
    )
    return [
        Case("none, greedy"),
        Case("none, sampled", sampled=True),
        Case("no penalty", penalty=1.0),
        Case("boost, greedy", (boost(),)),
        Case("boost, sampled", (boost(),), sampled=True),
        Case("negative boost", (boost(strength=-40.0),)),
        Case("several boosts, greedy", (boost(), boost(9, 30.0), boost(300, 20.0, LATER))),
        Case("several boosts, sampled", (boost(), boost(9, 30.0)), sampled=True),
        Case("clamp, greedy", (clamp(),)),
        Case("ablation of 26 latents", tuple(clamp(i, 0.0) for i in range(100, 126))),
        Case("clamp, sampled", (clamp(),), sampled=True),
        Case("boost and clamp, greedy", (clamp(), boost(21, 50.0))),
        Case("boost over a clamp of the same latent", (clamp(8, 0.0), boost(8, 45.0))),
        Case("boost and clamp, sampled", (clamp(), boost(21, 50.0)), sampled=True),
        Case("vector, greedy", (vector(),)),
        Case("vector, sampled", (vector(),), sampled=True, top_p=0.9, top_k=40),
        Case("prompt only", (boost(positions="prompt"),)),
        Case("from token 6, sampled", (boost(from_token=6),), sampled=True),
        Case("until token 6", (boost(positions="generated", until_token=6),)),
        Case("over 512 tokens, none", prompt=long),
        Case("over 512 tokens, boost and readouts", (boost(),), read, prompt=long),
        Case("early end, none", prompt=short, tokens=60),
        Case("early end, small boost", (boost(strength=4.0),), prompt=short, tokens=60),
        Case(
            "readouts of every token, sampled",
            (boost(), clamp(20, 0.0)),
            (
                Readout(latents=(8, 20), layer=LAYER, reduce="tokens"),
                Readout(latents="norm", layer=LATER, reduce="tokens"),
                Readout(latents="norm", layer=LAYER, reduce="mean", positions="generated"),
                *read,
            ),
            sampled=True,
        ),
    ]


def rows(encode_chat: Callable[..., list[int]], runtime: Runtime) -> list[Row]:
    """The cases as rows of one batch, each with its own seed and most with their own prompt."""
    made = []
    for number, case in enumerate(cases()):
        text = case.prompt or prompts()[number % 7].text
        steering = None
        if case.edits or case.readouts:
            steering = Steering(runtime=runtime, edits=case.edits, readouts=case.readouts)
        made.append(
            Row(
                prompt=tuple(encode_chat([{"role": "user", "content": text}], None)),
                sampling=Sampling(
                    seed=number,
                    temperature=0.8 if case.sampled else 0.0,
                    top_p=case.top_p,
                    top_k=case.top_k,
                    repetition_penalty=case.penalty,
                    max_tokens=case.tokens,
                ),
                steering=steering,
            )
        )
    return made
