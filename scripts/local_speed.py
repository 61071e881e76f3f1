"""What the local backend costs beside plain transformers, and how many rows it takes at once.

`python scripts/local_speed.py --tokenizer FOLDER [--shape 8b] [--rows 32,128,256]` makes a model of
a shape with random weights, and times the same rows four ways on one machine: transformers' own
`generate`, sampling alike; the backend unsteered; with one boost; with one boost and 26 clamps.
Rounds run forwards and backwards by turns. Then as many requests as the provider takes at once go
through it, which chooses the batch itself (`automatic`).
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
from vllm_cost import BASE, BOOST, CLAMPED, CLAMPS, LLAMA, SHAPES, in_turns, layer_of

PLAIN = "plain transformers"
KINDS = (PLAIN, BASE, BOOST, CLAMPED)
LATENTS = 1024
VOCABULARY = 65536
"""Fewest: a tokenizer may know so many."""
TEMPERATURE, PENALTY = 0.6, 1.1


def lay_model(folder: Path, shape: str, tokenizer: str, device: str) -> None:
    """A model with random weights and an SAE of its width."""
    import torch
    from sae_lens import StandardSAE, StandardSAEConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    facts = dict(SHAPES[shape])
    dtype = getattr(torch, facts.pop("torch_dtype"))
    context = LLAMA["max_position_embeddings"]
    facts["vocab_size"] = max(facts["vocab_size"], VOCABULARY)
    config = LlamaConfig(**facts, max_position_embeddings=context, eos_token_id=2)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder / "model")
    for file in Path(tokenizer).glob("*token*"):
        shutil.copy(file, folder / "model")
    for name in ("chat_template.jinja", "generation_config.json"):
        if (Path(tokenizer) / name).is_file():
            shutil.copy(Path(tokenizer) / name, folder / "model")
    width = facts["hidden_size"]
    about = StandardSAEConfig(d_in=width, d_sae=LATENTS, dtype="float32", device="cpu")
    about.metadata.hook_name = f"blocks.{layer_of(shape)}.hook_resid_post"
    sae = StandardSAE(about)
    sae.W_dec.data = torch.nn.functional.normalize(torch.randn(LATENTS, width), dim=1)
    sae.W_enc.data = sae.W_dec.data.T.contiguous()
    sae.save_model(folder / "sae")


class Bench:
    """One loaded backend, and the bare model beside it."""

    def __init__(self, model: Any, backend: Any, tokens: int, layer: int) -> None:
        """Take what is loaded."""
        self.model, self.backend, self.tokens, self.layer = model, backend, tokens, layer
        self.bare: Any = backend._model

    def rows(self, kind: str, count: int) -> list[Any]:
        """The requests of one batch."""
        from esr_eval.dataset import prompts
        from esr_eval.spec import Boost, Clamp, Edit, Steering
        from esr_eval.steering.requests import Row
        from esr_eval.steering.sampling import Sampling

        texts = [prompt.text for prompt in prompts()]
        made = []
        for number in range(count):
            edits: tuple[Edit, ...] = ()
            if kind in (BOOST, CLAMPED):
                latent = CLAMPS + number % (LATENTS - CLAMPS)
                edits = (Boost(latent=latent, strength=4.0, layer=self.layer),)
            if kind == CLAMPED:
                edits += tuple(Clamp(latent=i, layer=self.layer) for i in range(CLAMPS))
            chat = [{"role": "user", "content": texts[number % len(texts)]}]
            steering = Steering(runtime=self.backend.runtime, edits=edits) if edits else None
            sampling = Sampling(number, TEMPERATURE, None, None, PENALTY, self.tokens)
            made.append(Row(tuple(self.backend.encode_chat(chat, None)), sampling, steering))
        return made

    def run(self, kind: str, count: int) -> float:
        """Seconds a token of one batch."""
        rows = self.rows(kind, count)
        began = time.perf_counter()
        made = self._plain(rows) if kind == PLAIN else self._ours(rows)
        return (time.perf_counter() - began) / made

    def _plain(self, rows: list[Any]) -> int:
        import torch
        from transformers import GenerationConfig

        from esr_eval.steering.plan import padded

        ids, mask = padded([row.prompt for row in rows], self.backend.pad, self.bare.device)
        settings = GenerationConfig(
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            repetition_penalty=PENALTY,
            max_new_tokens=self.tokens,
            min_new_tokens=self.tokens,
            eos_token_id=self.backend.ends,
            pad_token_id=self.backend.pad,
        )
        with torch.inference_mode():
            out = self.bare.generate(ids, attention_mask=mask, generation_config=settings)
        return int(out[:, ids.shape[1] :].cpu().numel())

    def _ours(self, rows: list[Any]) -> int:
        done = self.backend.generate(rows)
        for row, one in zip(rows, done, strict=True):
            edited = row.steering is not None
            assert (one.edited_positions > 0) == edited, "an edit was lost"
            assert one.edited_positions == one.expected_positions
        return sum(len(one.tokens) for one in done)

    async def automatic(self) -> None:
        """As many requests as the provider takes at once, by its own choice of batch."""
        from esr_eval.solvers import steering_config
        from esr_eval.spec import Boost

        count, tokens = self.model.api.max_connections(), 0

        async def one(number: int) -> None:
            nonlocal tokens
            config = steering_config(
                self.model,
                edits=(Boost(latent=CLAMPS + number % 900, strength=4.0, layer=self.layer),),
                seed=number,
                max_tokens=self.tokens,
                temperature=TEMPERATURE,
            )
            # As the tasks do: Inspect's own choice begins with 20, whatever fits.
            config.max_connections = count
            output = await self.model.generate(f"Write the number {number}.", config=config)
            tokens += output.usage.output_tokens

        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(one, number)
        seconds = time.perf_counter() - began
        print(
            f"automatic: {count} requests with one boost at once, {tokens / seconds:,.0f} tokens/s "
            f"({self.backend.rows_that_fit(self.tokens + 64)} rows of {self.tokens + 64} would fit)"
        )


async def measure(args: argparse.Namespace, folder: Path) -> None:
    """Everything that the command measures."""
    from inspect_ai.model import get_model

    layer = layer_of(args.shape)
    model = get_model(
        f"esr/{folder}/model",
        memoize=False,
        dtype=SHAPES[args.shape]["torch_dtype"],
        sae_release=str(folder / "sae"),
        steering_layer=layer,
        feature_layer=layer,
        **({"device": args.device} if args.device else {}),
    )
    api: Any = model.api
    backend = await api.ready()
    bench = Bench(model, backend, args.tokens, layer)
    print(f"{args.shape} on {backend.info.device}: {backend.info.self_check}", flush=True)
    for count in (int(size) for size in args.rows.split(",")):
        seconds = in_turns(bench.run, KINDS, count, args.rounds)
        print(f"{count} rows of {args.tokens} tokens:")
        for kind in KINDS:
            middle = statistics.median(seconds[kind])
            pairs = zip(seconds[PLAIN], seconds[kind], strict=True)
            share = [plain / ours for plain, ours in pairs]
            print(
                f"  {kind}: {1 / middle:,.0f} tokens/s, {1e3 * count * middle:.1f} ms a step, "
                f"{statistics.median(share):.2f} of plain ({min(share):.2f} to {max(share):.2f})",
                flush=True,
            )
    await bench.automatic()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--tokenizer", required=True, help="A folder with a model's tokenizer.")
    parser.add_argument("--folder", help="Where the model is made; /dev/shm spares a disk.")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rows", default="32")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import torch

    folder = Path(args.folder or tempfile.mkdtemp())
    device = "cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu"
    if not (folder / "sae").is_dir():
        lay_model(folder, args.shape, args.tokenizer, device)
    anyio.run(measure, args, folder)


if __name__ == "__main__":
    main()
