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
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not paths:
        raise EsrError(
            f"{type(model).__name__} keeps its {count} decoder layers nowhere this project knows; "
            "it cannot be steered."
        )
    return str(min(paths, key=len))


def descend(root: Any, path: str) -> Any:
    """Follow a dotted path of attributes."""
    for name in path.split("."):
        root = getattr(root, name)
    return root
