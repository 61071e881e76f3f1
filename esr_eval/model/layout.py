"""Where a transformer keeps its decoder layers, whatever its architecture."""

from typing import Any

from torch import nn

from esr_eval.errors import EsrError


def decoder_layers_path(model: nn.Module) -> str:
    """Dotted path of the list of decoder layers, e.g. `model.layers`.

    Raises:
        EsrError: No module list has as many members as the config has layers.
    """
    count = int(model.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr,operator]
    paths = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _in_order(module)
    ]
    if not paths:
        raise EsrError(
            f"{type(model).__name__} keeps its {count} decoder layers nowhere this project knows; "
            "it cannot be steered."
        )
    return str(min(paths, key=len))


def _in_order(layers: nn.ModuleList) -> bool:
    """Whether layers whose parts know their number (transformers' `layer_idx`) stand in order."""
    return all(
        getattr(part, "layer_idx", None) in (None, number)
        for number, layer in enumerate(layers)
        for part in layer.modules()
    )


INPUT_NORMS = ("input_layernorm", "ln_1", "input_norm", "norm1")
"""Names of the norm at which a decoder layer begins, in the architectures that have one."""


def final_norm_path(model: nn.Module, layers_path: str) -> str | None:
    """Dotted path of the module that receives the last decoder layer's output; None: unknown.

    Args:
        model: The model.
        layers_path: Where it keeps its decoder layers.
    """
    above = layers_path.rpartition(".")[0]
    norms = [
        name
        for name, module in descend(model, above).named_children()
        if "norm" in type(module).__name__.lower()
    ]
    # Where embeddings are normalised as well, the final one is defined last.
    return ".".join(filter(None, (above, norms[-1]))) if norms else None


class Stack:
    """A model's decoder layers and, behind each of them, the module that receives its output.

    Attributes:
        layers: The decoder layers, of a model or of nnsight's tree over it.
    """

    def __init__(self, model: nn.Module, tree: Any) -> None:
        """Find them.

        Args:
            model: The model, or its skeleton without weights.
            tree: What to take them from: the model itself, or nnsight's tree over it.

        Raises:
            EsrError: The decoder layers cannot be found.
        """
        path = decoder_layers_path(model)
        self.layers = descend(tree, path)
        norm = final_norm_path(model, path)
        self._norm = None if norm is None else descend(tree, norm)
        self._count = len(descend(model, path))
        # Its norm gets the residual alone. To look at what a layer gets is to look at its cache as
        # well, of which a server that runs requests apart from the model would keep a copy.
        parts = dict(descend(model, path)[0].named_children())
        self._input_norm = next((name for name in INPUT_NORMS if name in parts), None)

    def receiver(self, layer: int) -> Any:
        """The module that receives a layer's output, where an edit has to arrive.

        Raises:
            EsrError: It is the last layer's, and the model keeps its final norm elsewhere.
        """
        if layer + 1 < self._count:
            behind, norm = self.layers[layer + 1], self._input_norm
            return behind if norm is None else getattr(behind, norm)
        if self._norm is None:
            raise EsrError(
                f"Nothing is known to receive the output of the last decoder layer ({layer}) in "
                "this architecture, so an edit there cannot be proven: steer at an earlier layer."
            )
        return self._norm


def descend(root: Any, path: str) -> Any:
    """Follow a dotted path of attributes."""
    for name in filter(None, path.split(".")):
        root = getattr(root, name)
    return root
