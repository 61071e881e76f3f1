"""What steering costs: steered against unsteered tokens per second on one engine, in one run.

`python scripts/throughput.py --backend local|ndif|vllm` asks the same engine, through the provider,
for the same tasks in turn unsteered, with one boost, and with one boost and 26 clamps (the paper's
ablation). Rounds run forwards and backwards by turns (A B C, C B A, ...), so what drifts or comes
from other processes falls on all alike; every round gives one ratio of each kind to unsteered, and
the interval is Student's over the logarithms of these ratios.

Tasks whose answer ends before the token limit under any of the three are found in a first pass,
which also warms the engine up, and left out: every timed batch makes the same number of tokens.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
import psutil
from inspect_ai.model import GenerateConfig, Model, ModelOutput, get_model
from rich.console import Console
from rich.table import Table
from scipy import stats

from esr_eval.dataset import load_latents, prompts
from esr_eval.errors import EsrError
from esr_eval.solvers import runtime_of, steering_config, subject_of
from esr_eval.spec import Boost, Clamp, Edit

BASE = "unsteered"
CLAMPS = 26
LEVEL = 0.95
TEMPERATURE = 0.6


@dataclass(frozen=True)
class Request:
    """One task with its sampler's seed, and the latent that is boosted when it is steered."""

    text: str
    seed: int
    latent: int


@dataclass
class Timed:
    """One timed batch.

    Attributes:
        kind: What was done to the model.
        seconds: Wall clock.
        cpu_seconds: Of this process, which on the local backend is the engine, and of the server
            that `--server` names.
        tokens: Tokens generated.
        short: Answers that ended before the limit; none, unless tokens depend on the batch.
    """

    kind: str
    seconds: float
    cpu_seconds: float
    tokens: int
    short: int


@dataclass
class Cost:
    """Time per token over the unsteered engine's, and its interval: 1.02 is 2 % more."""

    ratio: float
    low: float
    high: float


@dataclass
class Kind:
    """What one kind of request came to."""

    tokens_per_second: float
    cpu_ms_per_token: float
    wall: Cost | None = None
    cpu: Cost | None = None


@dataclass
class Result:
    """Everything measured, ready for JSON."""

    backend: str
    model: str
    rows: int
    tokens: int
    rounds: int
    strength: float
    load_average: tuple[float, float]
    versions: dict[str, str]
    kinds: dict[str, Kind]
    batches: list[Timed] = field(default_factory=list)


def edits_of(kind: str, latent: int, clamped: Sequence[int], strength: float, layer: int) -> Any:
    """The edits of one kind of request."""
    boost = Boost(latent=latent, strength=strength, layer=layer)
    made: dict[str, tuple[Edit, ...]] = {
        BASE: (),
        "1 boost": (boost,),
        f"1 boost, {CLAMPS} clamps": (*(Clamp(latent=i, layer=layer) for i in clamped), boost),
    }
    return made[kind]


KINDS = (BASE, "1 boost", f"1 boost, {CLAMPS} clamps")


class Bench:
    """One engine and what it is asked."""

    def __init__(
        self, model: Model, tokens: int, strength: float, server: int | None = None
    ) -> None:
        """Pick the latents; nothing is loaded yet."""
        self.model, self.tokens, self.strength, self.server = model, tokens, strength, server
        known = [latent.index for latent in load_latents(subject_of(model))]
        self.clamped, self.boosted = known[:CLAMPS], known[CLAMPS:]
        layer = runtime_of(model).steering_layer
        if layer is None:
            raise EsrError("The model has no steering layer: name a subject that has one.")
        self.layer = layer

    def candidates(self, count: int) -> list[Request]:
        """Real tasks, each with a seed and a latent of its own."""
        texts = [prompt.text for prompt in prompts()]
        return [
            Request(texts[i % len(texts)], i, self.boosted[i % len(self.boosted)])
            for i in range(count)
        ]

    def config(self, kind: str, request: Request) -> GenerateConfig:
        """One request's settings."""
        edits = edits_of(kind, request.latent, self.clamped, self.strength, self.layer)
        return steering_config(
            self.model,
            edits=edits,
            seed=request.seed,
            max_tokens=self.tokens,
            temperature=TEMPERATURE,
        )

    async def ask(self, kind: str, requests: Sequence[Request]) -> list[ModelOutput]:
        """Ask all at once, as an evaluation's samples do."""
        outputs: dict[int, ModelOutput] = {}

        async def one(index: int, request: Request) -> None:
            config = self.config(kind, request)
            outputs[index] = await self.model.generate(request.text, config=config)

        async with anyio.create_task_group() as tasks:
            for index, request in enumerate(requests):
                tasks.start_soon(one, index, request)
        return [outputs[index] for index in range(len(requests))]

    async def full_length(self, rows: int) -> list[Request]:
        """As many requests as wanted whose answers reach the limit whatever is done."""
        left = self.candidates(2 * rows)
        for kind in KINDS:
            kept = []
            for first in range(0, len(left), rows):
                some = left[first : first + rows]
                outputs = await self.ask(kind, some)
                kept += [
                    r for r, out in zip(some, outputs, strict=True) if made(out) == self.tokens
                ]
            left = kept
        if len(left) < rows:
            raise EsrError(
                f"Only {len(left)} of {2 * rows} answers reach {self.tokens} tokens: "
                "lower --tokens or --strength."
            )
        return left[:rows]

    async def timed(self, kind: str, requests: Sequence[Request]) -> Timed:
        """Ask and take the time."""
        wall, cpu = time.perf_counter(), cpu_time(self.server)
        outputs = await self.ask(kind, requests)
        seconds, cpu_seconds = time.perf_counter() - wall, cpu_time(self.server) - cpu
        counts = [made(output) for output in outputs]
        short = sum(count < self.tokens for count in counts)
        return Timed(kind, seconds, cpu_seconds, sum(counts), short)


def cpu_time(server: int | None) -> float:
    """CPU seconds so far of this process, and of a server's process with its children.

    Raises:
        EsrError: There is no such server.
    """
    if server is None:
        return time.process_time()
    try:
        first = psutil.Process(server)
        times = [one.cpu_times() for one in (first, *first.children(recursive=True))]
    except psutil.NoSuchProcess as error:
        raise EsrError(f"The server's process {server} is not there.") from error
    return time.process_time() + sum(one.user + one.system for one in times)


def made(output: ModelOutput) -> int:
    """Tokens generated."""
    return output.usage.output_tokens if output.usage else 0


def cost(ratios: Sequence[float]) -> Cost:
    """Geometric mean of paired ratios with its interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = sum(logs) / len(logs)
    if len(logs) < 2:
        return Cost(math.exp(mean), 0.0, math.inf)
    half = stats.t.ppf((1 + LEVEL) / 2, len(logs) - 1) * stats.sem(logs)
    return Cost(*(math.exp(value) for value in (mean, mean - half, mean + half)))


def kinds_of(batches: Iterable[Timed]) -> dict[str, Kind]:
    """Sum up batches that came in rounds of one of each kind."""
    by_kind: dict[str, list[Timed]] = {kind: [] for kind in KINDS}
    for batch in batches:
        by_kind[batch.kind].append(batch)
    found = {}
    for kind, timed in by_kind.items():
        tokens = sum(batch.tokens for batch in timed)
        found[kind] = one = Kind(
            tokens / sum(batch.seconds for batch in timed),
            1000 * sum(batch.cpu_seconds for batch in timed) / tokens,
        )
        if kind == BASE:
            continue
        pairs = list(zip(timed, by_kind[BASE], strict=True))
        one.wall = cost([a.seconds / a.tokens / (b.seconds / b.tokens) for a, b in pairs])
        one.cpu = cost([a.cpu_seconds / a.tokens / (b.cpu_seconds / b.tokens) for a, b in pairs])
    return found


async def measure(args: argparse.Namespace) -> Result:
    """Everything that the command measures."""
    model_args: dict[str, Any] = {"backend": args.backend}
    if args.backend != "vllm":  # its engine batches by itself
        model_args["batch_size"] = args.rows
    if args.backend == "ndif":
        model_args["requests"] = 1
    for pair in args.model_arg:
        name, _, value = pair.partition("=")
        model_args[name] = value
    config = GenerateConfig(max_connections=args.rows)
    model = get_model(args.model, config=config, base_url=args.base_url, **model_args)
    bench = Bench(model, args.tokens, args.strength, args.server)
    before = os.getloadavg()[0]
    requests = await bench.full_length(args.rows)
    batches = []
    for number in range(args.rounds):
        for kind in KINDS if number % 2 == 0 else reversed(KINDS):
            batches.append(await bench.timed(kind, requests))
    steered = await bench.ask(KINDS[1], requests[:1])
    return Result(
        backend=args.backend,
        model=args.model,
        rows=args.rows,
        tokens=args.tokens,
        rounds=args.rounds,
        strength=args.strength,
        load_average=(before, os.getloadavg()[0]),
        versions=(steered[0].metadata or {}).get("versions", {}),
        kinds=kinds_of(batches),
        batches=batches,
    )


def table(result: Result) -> Table:
    """The result for people."""
    title = (
        f"{result.model} on {result.backend}: {result.rows} rows x {result.tokens} tokens, "
        f"{result.rounds} rounds"
    )
    shown = Table(title=title)
    shown.add_column("", no_wrap=True)
    for column in ("tokens/s", "time per token", "95 %", "CPU per token", "95 %"):
        shown.add_column(column, justify="right")
    for kind, one in result.kinds.items():
        cells = []
        for found in (one.wall, one.cpu):
            if found is None:
                cells += ["", ""]
            else:
                cells += [
                    f"{100 * (found.ratio - 1):+.1f} %",
                    f"{100 * (found.low - 1):+.1f} to {100 * (found.high - 1):+.1f} %",
                ]
        shown.add_row(kind, f"{one.tokens_per_second:.1f}", *cells)
    short = sum(batch.short for batch in result.batches)
    shown.caption = (
        f"Load average {result.load_average[0]:.1f} before, {result.load_average[1]:.1f} after. "
        f"Answers that ended early: {short}. CPU: of this process, and of --server."
    )
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--backend", choices=("local", "ndif", "vllm"), default="local")
    parser.add_argument("--model", default="esr/smollm2-135m")
    parser.add_argument("--base-url", default=None, help="The server of a remote backend.")
    parser.add_argument("--server", type=int, help="Its process, to count the CPU it takes, too.")
    parser.add_argument("-M", dest="model_arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rows", type=int, default=16, help="Requests under way at once.")
    parser.add_argument("--tokens", type=int, default=64, help="Length of every answer.")
    parser.add_argument("--rounds", type=int, default=8, help="Batches of each kind.")
    parser.add_argument("--strength", type=float, default=30.0, help="Of the boost.")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table.")
    args = parser.parse_args(argv)
    result = anyio.run(measure, args)
    if args.json:
        print(json.dumps(asdict(result), indent=1))
    else:
        Console().print(table(result))


if __name__ == "__main__":
    main()
