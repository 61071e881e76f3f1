"""The machines of the estimates: figures of public data sheets, none of them measured here."""

from dataclasses import dataclass

from esr_eval.errors import EsrError

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One accelerator, or one CPU.

    Attributes:
        name: Its name.
        flops: FLOP per second of dense matrix products in `dtype`.
        bandwidth: Bytes per second from its memory.
        memory: Bytes of it.
        link: Bytes per second to each other GPU of a node, one way.
        source: Where the figures come from.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    link: float
    source: str


GPUS = {
    "h100": Hardware(
        "NVIDIA H100 SXM 80 GB",
        flops=989e12,
        bandwidth=3.35e12,
        memory=80 * GIB,
        link=450e9,
        source="data sheet: bfloat16 dense, HBM3; NVLink 900 GB/s both ways",
    ),
    "rtx4090": Hardware(
        "NVIDIA GeForce RTX 4090 24 GB",
        flops=165.2e12,
        bandwidth=1.008e12,
        memory=24 * GIB,
        link=32e9,
        source="Ada whitepaper: 16 bit dense, float32 sums; PCIe 4.0 x16",
    ),
}
"""By the name that the command line takes."""


def find_gpu(name: str) -> Hardware:
    """Look a GPU up.

    Raises:
        EsrError: It is not in the table.
    """
    if name not in GPUS:
        raise EsrError(f"There are no figures for '{name}'; there are: {', '.join(GPUS)}.")
    return GPUS[name]
