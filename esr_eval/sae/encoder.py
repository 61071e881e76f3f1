"""What is read of a residual: single latents' activations, and its norm. Pure tensor maths."""

from collections.abc import Callable

import torch
from torch import Tensor

EncodeFn = Callable[[Tensor], Tensor]
"""Residuals (batch, position, d_model) -> activations of a fixed list of latents, last axis."""
LAYER_NORM_EPS = 1e-5


def norm_scale(x: Tensor) -> Tensor:
    """Scale of constant_norm_rescale: the residual's norm over sqrt(d_model), (..., 1)."""
    scale: Tensor = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return scale


def spread(x: Tensor) -> Tensor:
    """Scale of layer_norm: the residual's standard deviation, (..., 1)."""
    return x.std(dim=-1, keepdim=True)


def normalise(x: Tensor, how: str) -> Tensor:
    """Residuals as an SAE with input normalisation `how` wants them."""
    if how == "constant_norm_rescale":
        return x / norm_scale(x)
    if how == "layer_norm":
        x = x - x.mean(dim=-1, keepdim=True)
        return x / (spread(x) + LAYER_NORM_EPS)
    return x


def packed(values: Tensor) -> Tensor:
    """The same numbers in half the bytes, where 16 bits hold each of them exactly."""
    for dtype in (torch.bfloat16, torch.float16):
        small = values.to(dtype)
        if torch.equal(small.float(), values):
            return small
    return values


class LatentEncoder:
    """Activations of single latents of an element-wise SAE, from their own rows alone."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        threshold: Tensor,
        centre: Tensor | None,
        normalisation: str,
    ) -> None:
        """Take the latents' rows, all float32.

        Args:
            weight: Encoder columns, (d_model, latents).
            bias: Encoder biases, (latents,).
            threshold: Activations at or below it are 0, (latents,).
            centre: What is subtracted from the input first, (d_model,); None: nothing.
            normalisation: What is done to the input before that.
        """
        self.weight, self.bias, self.threshold, self.centre = weight, bias, threshold, centre
        self.normalisation = normalisation

    def __call__(self, x: Tensor) -> Tensor:
        """Residuals (..., d_model), float32, to activations (..., latents)."""
        x = normalise(x, self.normalisation)
        if self.centre is not None:
            x = x - self.centre
        hidden = x @ self.weight + self.bias
        activations: Tensor = torch.relu(hidden) * (hidden > self.threshold)
        return activations

    def to(self, device: torch.device | str) -> "LatentEncoder":
        """Move the rows to a device, in place."""
        for name in ("weight", "bias", "threshold"):
            setattr(self, name, getattr(self, name).to(device))
        self.centre = self.centre if self.centre is None else self.centre.to(device)
        return self

    def __getstate__(self) -> "dict[str, object]":
        """For sending: rows of an SAE stored in 16 bits travel in 16 bits."""
        state = dict(self.__dict__)
        state["weight"] = packed(self.weight)
        state["centre"] = None if self.centre is None else packed(self.centre)
        return state

    def __setstate__(self, state: "dict[str, object]") -> None:
        """Undo the packing."""
        self.__dict__.update(state)
        self.weight = self.weight.float()
        self.centre = None if self.centre is None else self.centre.float()


class ResidualNorm:
    """The residual's L2 norm, in the place of one latent's activation."""

    def __call__(self, x: Tensor) -> Tensor:
        """Residuals (..., d_model) to norms (..., 1), float32."""
        norms: Tensor = x.float().norm(dim=-1, keepdim=True)
        return norms


SMALL = (LatentEncoder, ResidualNorm)
"""What travels to a server with a request; an SAE as a whole does not."""
