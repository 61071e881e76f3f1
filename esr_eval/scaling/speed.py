"""How fast a machine can be at best: the roofline, what fits, and where it saturates."""

import math
from dataclasses import dataclass

from esr_eval.scaling.costs import Cost, decode_step, kv_bytes, prompt_pass
from esr_eval.scaling.hardware import Hardware
from esr_eval.scaling.shapes import BYTES, ModelShape
from esr_eval.weights import HEADROOM

SPARE = 0.05
"""Share of a GPU's memory that neither weights nor keys and values may take."""
MEAN_ANSWER = 0.5
"""While an answer grows, its cache is half as long as in the end, on average."""


@dataclass(frozen=True)
class Software:
    """Seconds of Python and of launching kernels, which a fast machine waits for.

    Attributes:
        per_layer: For every decoder layer of every step.
        per_step: For every step beside that.
    """

    per_layer: float = 0.0
    per_step: float = 0.0

    def step(self, shape: ModelShape) -> float:
        """Seconds of one step."""
        return self.per_layer * shape.n_layers + self.per_step


NO_SOFTWARE = Software()
LOCAL_SOFTWARE = Software(per_layer=0.25e-3, per_step=2.0e-3)
"""transformers inside nnsight with our edits on, measured on a CPU (`scripts/roofline.py`). Not
measured on a GPU, where kernels are launched from Python in the same way."""


@dataclass(frozen=True)
class Plan:
    """How the GPUs are used.

    Attributes:
        shape: The model.
        hardware: Each GPU.
        gpus: How many.
        each: How many of them hold one copy of the model.
        together: Whether these work at the same time (tensor parallel: vLLM) or in turn, layer
            after layer (device_map: the local backend).
        dtype: Of weights.
    """

    shape: ModelShape
    hardware: Hardware
    gpus: int
    each: int
    together: bool
    dtype: str

    @property
    def copies(self) -> int:
        """Copies of the model, each with requests of its own."""
        return self.gpus // self.each

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return BYTES[self.dtype]

    def seconds(self, cost: Cost, tokens: float) -> float:
        """Least time for a forward pass: what takes longer, computing or reading.

        Args:
            cost: Its work.
            tokens: Positions of all its rows, for what GPUs have to tell each other.
        """
        workers = self.each if self.together else 1
        compute = cost.flop / (workers * self.hardware.flops)
        read = cost.read / (workers * self.hardware.bandwidth)
        return max(compute, read) + self.talk(tokens)

    def talk(self, tokens: float) -> float:
        """Seconds for which GPUs that share every layer exchange residuals: twice a layer."""
        if not self.together or self.each == 1:
            return 0.0
        bytes_each = 2 * (self.each - 1) / self.each * tokens * self.shape.d_model * 2
        return 2 * self.shape.n_layers * bytes_each / self.hardware.link

    def step(self, rows: int, context: float, software: Software = NO_SOFTWARE) -> float:
        """Least seconds for one token of every row of one copy."""
        cost = decode_step(self.shape, rows, context, self.width)
        return max(self.seconds(cost, rows), software.step(self.shape))

    def tokens_per_second(
        self, rows: int, context: float, software: Software = NO_SOFTWARE
    ) -> float:
        """Tokens generated per second by all copies, at most."""
        return self.copies * rows / self.step(rows, context, software)

    def read_seconds(self, tokens: int, length: int, rows: int) -> float:
        """Least seconds to read prompts, all copies at work.

        Args:
            tokens: Of all prompts together.
            length: Of one prompt.
            rows: Prompts that are read in one pass.
        """
        passes = tokens / length / rows
        cost = prompt_pass(self.shape, length, self.width, rows)
        return passes * self.seconds(cost, rows * length) / self.copies

    @property
    def memory(self) -> float:
        """Bytes for the caches of one copy."""
        weights = self.shape.parameters * self.width
        return self.each * self.hardware.memory * (1 - SPARE) - weights

    def most_rows(self, positions: int) -> int:
        """Rows whose keys and values one copy can hold."""
        return int(self.memory // (positions * kv_bytes(self.shape, self.width)))

    def compute_bound_from(self, context: float) -> int | None:
        """Rows from which on computing takes longer than reading.

        Returns:
            None where it never does: every further row brings more to read than to compute.
        """
        none = decode_step(self.shape, 0, context, self.width)
        one = decode_step(self.shape, 1, context, self.width)
        per_row = one.flop / self.hardware.flops - (one.read - none.read) / self.hardware.bandwidth
        if per_row <= 0:
            return None
        return math.ceil(none.read / self.hardware.bandwidth / per_row)

    def software_bound_below(self, context: float, software: Software) -> int:
        """Rows below which the GPU waits for Python; 0 where it never does."""
        none = self.step(0, context)
        if software.step(self.shape) <= none:
            return 0
        per_row = (self.step(64, context) - none) / 64
        return math.ceil((software.step(self.shape) - none) / per_row)


def plan(
    shape: ModelShape, hardware: Hardware, gpus: int, dtype: str, together: bool
) -> Plan | None:
    """The plan with the most copies; None where the model does not fit.

    Args:
        shape: The model.
        hardware: Each GPU.
        gpus: How many.
        dtype: Of weights.
        together: See `Plan`.
    """
    each = 1
    while each <= gpus:
        if shape.parameters * BYTES[dtype] * HEADROOM <= each * hardware.memory:
            return Plan(shape, hardware, gpus, each, together, dtype)
        each *= 2
    return None
