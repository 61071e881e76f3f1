"""What steering costs a vLLM server in software: steered less unsteered, per row and step.

The model is so small (2 layers, width 64, random weights) that nothing but software shows. Run it
with the Python of the server's environment and the plugin's folder on the path:

`PYTHONPATH=PLUGIN PYTHON scripts/vllm_cost.py [--eager] [--rows 16,64,128,256]`, where `esr-eval
serve vllm start` has laid PLUGIN out in `servers/vllm/run/plugin` of the cache and PYTHON is
`servers/vllm/.venv/bin/python` there. Rounds run forwards and backwards by turns. On a CPU the time
is that of this process, on a GPU the clock's.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

LAYER, WIDTH, PROMPT, CLAMPS, END = 0, 64, 8, 26, 10**9
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
}
KINDS = ("unsteered", "1 boost", f"1 boost, {CLAMPS} clamps")


class Bench:
    """One engine in this process."""

    def __init__(self, eager: bool, tokens: int, most: int) -> None:
        """Load the model, and put rows into the plugin's bank."""
        import torch
        from safetensors.torch import save
        from vllm import LLM

        self.tokens, self.clock, self.asked = tokens, time.process_time, 0
        if torch.cuda.is_available():
            self.clock = time.perf_counter
        folder = tempfile.mkdtemp()
        Path(folder, "config.json").write_text(json.dumps(CONFIG), "utf-8")
        self.llm = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=most,
            enforce_eager=eager,
        )
        torch.manual_seed(0)
        rows = {}
        for place in range(CLAMPS + most):
            rows[f"{place:05}/direction"] = torch.randn(WIDTH) / WIDTH**0.5
            rows[f"{place:05}/encoder"] = torch.randn(WIDTH) / WIDTH**0.5
            rows[f"{place:05}/numbers"] = torch.zeros(3)
        self.llm.collective_rpc("esr_put", args=(list(range(CLAMPS + most)), save(rows)))

    def run(self, kind: str, rows: int) -> float:
        """Seconds that `rows` answers take; their receipts are checked."""
        from vllm import SamplingParams

        names, params = [], []
        for slot in range(rows):
            self.asked += 1
            names.append(str(self.asked))
            terms = [(CLAMPS + slot, 0.5, 1, END, 0.0, 0.0)]
            if kind == KINDS[2]:
                terms += [(row, 0.0, 1, END, 1.0, 0.0) for row in range(CLAMPS)]
            plan = {"id": names[-1], "slot": slot, "edits": {LAYER: terms}, "reads": []}
            extra = None if kind == KINDS[0] else {"esr_plan": json.dumps(plan)}
            sampling = {"temperature": 0, "max_tokens": self.tokens, "ignore_eos": True}
            params.append(
                SamplingParams(
                    **sampling, detokenize=False, skip_reading_prefix_cache=True, extra_args=extra
                )
            )
        prompts = [
            {"prompt_token_ids": [3 + (7 * i + j) % 250 for j in range(PROMPT)]}
            for i in range(rows)
        ]
        began = self.clock()
        self.llm.generate(prompts, params, use_tqdm=False)
        seconds = self.clock() - began
        if kind != KINDS[0]:
            fed = PROMPT + self.tokens - 1
            asked = [(name, fed) for name in names]
            for told in self.llm.collective_rpc("esr_fetch", args=(asked,))[0]:
                assert told["counts"] == {str(LAYER): [fed - 1, 0]}, told
        return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--eager", action="store_true", help="Without compiling.")
    parser.add_argument("--rows", default="16,64,128,256")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    sizes = [int(size) for size in args.rows.split(",")]
    os.environ |= {
        "VLLM_PLUGINS": "esr_eval",
        "ESR_EVAL_VLLM_LAYERS": str(LAYER),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    bench = Bench(args.eager, args.tokens, max(sizes))
    for rows in sizes:
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            bench.run(kind, rows)  # warms up
        for number in range(args.rounds):
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                seconds[kind].append(bench.run(kind, rows))
        steps = rows * args.tokens
        base = seconds[KINDS[0]]
        print(f"{rows} rows: {1e3 * statistics.median(base) / args.tokens:.2f} ms a step unsteered")
        for kind in KINDS[1:]:
            costs = sorted(1e6 * (a - b) / steps for a, b in zip(seconds[kind], base, strict=True))
            low, middle, high = statistics.quantiles(costs, n=4)
            print(f"  {kind}: {middle:.2f} us a row and step (quartiles {low:.2f}, {high:.2f})")


if __name__ == "__main__":
    main()
