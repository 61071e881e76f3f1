"""What steering costs a vLLM server: steered less unsteered, per row and step.

The "small" shape (2 layers, width 64) is so small that nothing but software shows; "135m" is that
of SmolLM2-135M, "8b" is Llama-3.1-8B's, for a GPU. Weights are random. Run it with the Python of
the server's environment and the plugin's folder on the path:

`PYTHONPATH=PLUGIN PYTHON scripts/vllm_cost.py [--shape 8b] [--eager] [--rows 16,64,128,256]`, where
`esr-eval serve vllm start` has laid PLUGIN out in `servers/vllm/run/plugin` of the cache and PYTHON
is `servers/vllm/.venv/bin/python` there. Rounds run forwards and backwards by turns. On a CPU the
time is that of this process, on a GPU the clock's. `--lens` measures vllm-lens, where it is
installed, beside ours in the same engine, which then is eager, as vllm-lens makes every engine.
`--hotwire` measures hotwire-vllm in place of ours.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROMPT, CLAMPS, END = 8, 26, 10**9
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 2048,
}
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 256,
        "torch_dtype": "float32",
    },
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "torch_dtype": "float32",
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
    },
}
BASE, BOOST, CLAMPED = "unsteered", "1 boost", f"1 boost, {CLAMPS} clamps"
OURS, THEIRS = "unsteered, esr-eval's sampler", "unsteered, vLLM's sampler"
HOTWIRE = "hotwire-vllm, 1 vector"
LENS = "vllm-lens, 1 vector"
VECTORS = 16
"""Vectors that hotwire-vllm, which holds few, and vllm-lens are given."""


class Bench:
    """One engine in this process."""

    def __init__(self, args: argparse.Namespace, most: int) -> None:
        """Load the model, and put rows into the plugin's bank."""
        import torch
        from vllm import LLM

        self.tokens, self.clock, self.asked = args.tokens, time.process_time, 0
        if torch.cuda.is_available():
            self.clock = time.perf_counter
        shape = SHAPES[args.shape]
        self.layer = layer_of(args.shape)
        folder = tempfile.mkdtemp()
        Path(folder, "config.json").write_text(json.dumps(LLAMA | shape), "utf-8")
        options = json.loads(args.options)
        self.llm = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=shape["torch_dtype"],
            max_model_len=1024,
            max_num_seqs=most,
            enforce_eager=args.eager,
            **options,
        )
        self.lens = torch.randn(VECTORS, 1, shape["hidden_size"]) / shape["hidden_size"] ** 0.5
        if not args.hotwire:
            self._put_rows(shape["hidden_size"], most)

    def _put_rows(self, width: int, most: int) -> None:
        import torch
        from safetensors.torch import save

        torch.manual_seed(0)
        rows = {}
        for place in range(CLAMPS + most):
            rows[f"{place:05}/vectors"] = torch.randn(2, width) / width**0.5
            rows[f"{place:05}/numbers"] = torch.zeros(3)
        self.llm.collective_rpc("esr_put", args=(list(range(CLAMPS + most)), save(rows)))

    def request_args(self, kind: str, name: str, number: int) -> dict[str, Any]:
        """What the request of one row says beside its sampling."""
        if kind == HOTWIRE:
            vector = {"id": f"v{number % VECTORS}", "layer": self.layer, "scale": 0.5}
            return {"hotwire": json.dumps(vector)}
        if kind == LENS:
            from vllm_lens import SteeringVector

            vector = SteeringVector(
                activations=self.lens[number % VECTORS], layer_indices=[self.layer], scale=0.5
            )
            return {"apply_steering_vectors": [vector]}
        plan: dict[str, Any] = {"id": None, "sampling": None, "edits": {}, "reads": {}}
        if kind == OURS:
            sampling = {"seed": number, "temperature": 0.6, "top_p": None, "top_k": None}
            sampling |= {"repetition_penalty": 1.1, "max_tokens": self.tokens}
            return {"esr": {**plan, "sampling": sampling}}
        if kind not in (BOOST, CLAMPED):
            return {}
        terms = [(CLAMPS + number, 0.5, 1, END, False)]
        if kind == CLAMPED:
            terms += [(row, 0.0, 1, END, True) for row in range(CLAMPS)]
        return {"esr": {**plan, "id": name, "edits": {self.layer: terms}}}

    def run(self, kind: str, rows: int) -> float:
        """Seconds that `rows` answers take; their receipts are checked."""
        from vllm import SamplingParams

        names, params = [], []
        for number in range(rows):
            self.asked += 1
            names.append(str(self.asked))
            sampling: dict[str, Any] = {"temperature": 0}
            if kind == THEIRS:
                sampling = {"temperature": 0.6, "repetition_penalty": 1.1, "seed": number}
            params.append(
                SamplingParams(
                    **sampling,
                    max_tokens=self.tokens,
                    ignore_eos=True,
                    detokenize=False,
                    skip_reading_prefix_cache=True,
                    extra_args=self.request_args(kind, names[-1], number) or None,
                )
            )
        prompts = [
            {"prompt_token_ids": [3 + (7 * i + j) % 250 for j in range(PROMPT)]}
            for i in range(rows)
        ]
        began = self.clock()
        answers = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = self.clock() - began
        wrote = [answer.outputs[0].token_ids for answer in answers]
        if kind == BASE:
            self.base = wrote
        # Its requests carry no receipt; where it is not active, they run unsteered.
        assert kind != LENS or wrote != self.base[:rows], "vllm-lens changed nothing"
        if kind in (BOOST, CLAMPED):
            fed = PROMPT + self.tokens - 1
            asked = [(name, fed) for name in names]
            for told in self.llm.collective_rpc("esr_fetch", args=(asked,))[0]:
                assert told["counts"] == {str(self.layer): [fed - 1, 0]}, told
        return seconds


def layer_of(shape: str) -> int:
    """The layer that is steered: the middle."""
    return int(SHAPES[shape]["num_hidden_layers"]) // 2


def in_turns(
    run: Callable[[str, int], float], kinds: Sequence[str], rows: int, rounds: int
) -> dict[str, list[float]]:
    """What `run` tells of each kind, in rounds that go forwards and backwards by turns."""
    told: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds:
        run(kind, rows)  # warms up
    for number in range(rounds):
        for kind in kinds if number % 2 == 0 else reversed(kinds):
            told[kind].append(run(kind, rows))
    return told


def lay_vectors(width: int, layers: int) -> str:
    """A folder of vectors as hotwire-vllm wants them."""
    import torch

    folder = Path(tempfile.mkdtemp())
    for number in range(VECTORS):
        torch.save(torch.randn(layers, width) / width**0.5, folder / f"v{number}.pt")
    return str(folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--eager", action="store_true", help="Without compiling.")
    parser.add_argument("--rows", default="16,64,128,256")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--samplers", action="store_true", help="Ours and vLLM's own as well.")
    parser.add_argument("--hotwire", action="store_true", help="hotwire-vllm in place of ours.")
    parser.add_argument("--lens", action="store_true", help="vllm-lens beside ours.")
    parser.add_argument("--options", default="{}", help="More of vLLM's engine arguments, as JSON.")
    args = parser.parse_args()
    sizes = [int(size) for size in args.rows.split(",")]
    shape = SHAPES[args.shape]
    plugins = "hotwire" if args.hotwire else "esr_eval,activations" if args.lens else "esr_eval"
    os.environ |= {
        "VLLM_PLUGINS": plugins,
        "ESR_EVAL_VLLM_LAYERS": str(layer_of(args.shape)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    if args.hotwire:
        folder = lay_vectors(shape["hidden_size"], shape["num_hidden_layers"])
        os.environ["HOTWIRE_VECTORS"] = folder
    kinds = (BASE, HOTWIRE) if args.hotwire else (BASE, BOOST, CLAMPED)
    if args.lens:
        kinds += (LENS,)
    if args.samplers:
        kinds += (OURS, THEIRS)
    bench = Bench(args, max(sizes))
    for rows in sizes:
        seconds = in_turns(bench.run, kinds, rows, args.rounds)
        steps = rows * args.tokens
        base = seconds[BASE]
        middle = statistics.median(base)
        print(
            f"{rows} rows: {1e3 * middle / args.tokens:.2f} ms a step, "
            f"{steps / middle:,.0f} tokens/s unsteered",
            flush=True,
        )
        for kind in kinds[1:]:
            costs = sorted(1e6 * (a - b) / steps for a, b in zip(seconds[kind], base, strict=True))
            low, cost, high = statistics.quantiles(costs, n=4)
            speed = statistics.median(b / a for a, b in zip(seconds[kind], base, strict=True))
            print(
                f"  {kind}: {cost:.2f} us a row and step (quartiles {low:.2f}, {high:.2f}), "
                f"{speed:.3f} of the unsteered speed",
                flush=True,
            )


if __name__ == "__main__":
    main()
