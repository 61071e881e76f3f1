"""The boost during training: the same edit as in an evaluation, one latent per example."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from esr_eval.finetune.data import Push
from esr_eval.finetune.encoding import IGNORED, Encoded
from esr_eval.spec import Runtime

PUSH_KEY = "esr_push"
"""Name under which a batch carries its pushes to the model, (batch, d_model)."""


def make_collator(
    pad: int, runtime: Runtime, direction: Callable[[int], Any] | None, d_model: int
) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """A collator that pads on the right and adds each example's push.

    Args:
        pad: Token id of the padding.
        runtime: Of the model that is trained.
        direction: A latent's decoder row, (d_model,); None when nothing is boosted.
        d_model: Width of the residual stream.
    """
    import torch

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        encoded = [Encoded(**row) for row in rows]
        width = max(len(one.input_ids) for one in encoded)
        ids = torch.full((len(rows), width), pad)
        labels = torch.full((len(rows), width), IGNORED)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        pushes = torch.zeros(len(rows), d_model)
        for b, one in enumerate(encoded):
            length = len(one.input_ids)
            ids[b, :length] = torch.tensor(one.input_ids)
            labels[b, :length] = torch.tensor(one.labels)
            mask[b, :length] = 1
            if one.boost is not None and direction is not None:
                push = Push.model_validate(one.boost)  # the trainer's dataset holds it as a dict
                pushes[b] = push.strength * direction(push.latent)
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        if direction is not None:
            batch[PUSH_KEY] = pushes
        return batch

    return collate


@contextmanager
def boosted(model: Any, layer: Any, skip_first: int) -> Iterator[None]:
    """Let a model take pushes with its inputs and add them to a layer's output.

    Args:
        model: The model that the trainer calls; `esr_push` is taken out of its arguments.
        layer: The decoder layer whose output is edited.
        skip_first: Leading positions left alone (rows are padded on the right).
    """
    current: dict[str, Any] = {}

    def take(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        current["push"] = kwargs.pop(PUSH_KEY, None)
        return args, kwargs

    def add(_module: Any, _args: Any, output: Any) -> Any:
        push = current.get("push")
        if push is None:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        change = push.to(hidden.device).unsqueeze(1).expand(-1, hidden.shape[1], -1).clone()
        change[:, :skip_first] = 0
        edited = (hidden.float() + change).to(hidden.dtype)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    hooks = [
        model.register_forward_pre_hook(take, with_kwargs=True),
        layer.register_forward_hook(add),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
