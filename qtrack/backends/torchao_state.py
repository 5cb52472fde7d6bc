"""torchao's tensors as plain ones in a ``state_dict``: ``head.weight.qdata``, ``head.weight.scale``, ...

A weight of torchao's is a tensor of a class of its own around plain ones. Saved as it is, it could be read
only by letting torch rebuild those classes, and its bytes and scales would be hidden from whatever looks at
tensors: digests, sizes, comparisons. So the layers that hold one write its parts instead, and put parts back
together around what the recipe gives: a file holds nothing but plain tensors, and a changed scale is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qtrack.backends.layer_weights import is_packed


def keep_plain(module: nn.Module) -> None:
    """Let a layer's ``state_dict`` hold, and take, the parts of its packed parameters."""
    module.register_state_dict_post_hook(_take_apart)
    module.register_load_state_dict_pre_hook(_put_together)


def parts_of(tensor: Any) -> dict[str, Tensor]:
    """The plain tensors that a packed one is made of, by torchao's names for them."""
    names, _ = tensor.__tensor_flatten__()
    return {name: getattr(tensor, name) for name in names}


def _packed(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, parameter in module.named_parameters(recurse=False):
        if is_packed(parameter):
            yield name, parameter


def _take_apart(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
    for name in dict(_packed(module)):
        whole = state.pop(f"{prefix}{name}")
        state |= {f"{prefix}{name}.{part}": tensor for part, tensor in parts_of(whole).items()}


def _put_together(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    local: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    for name, parameter in _packed(module):
        own = parts_of(parameter)
        given = {part: state.pop(f"{prefix}{name}.{part}", None) for part in own}
        for part, tensor in given.items():
            if tensor is None:
                missing.append(f"{prefix}{name}.{part}")
            elif (tensor.shape, tensor.dtype) != (own[part].shape, own[part].dtype):
                errors.append(f"{prefix}{name}.{part} is {_described(tensor)}, not {_described(own[part])}")
            else:
                with torch.no_grad():
                    own[part].copy_(tensor)
        if f"{prefix}{name}" in state:
            unexpected.append(f"{prefix}{name}")
        state[f"{prefix}{name}"] = parameter.detach()


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} of {list(tensor.shape)}"
