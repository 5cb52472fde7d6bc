"""Digests of parameters: equal digests mean equal weights, scales and zero-points, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def digest_of(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors of a ``state_dict``."""
    digest = hashlib.sha256()
    for name, tensor in tensors_in(state):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        for part in _plain_parts(tensor):
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture_of(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, types and shapes alone: equal for two trainings of one network."""
    digest = hashlib.sha256()
    for name, tensor in tensors_in(state):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    return digest.hexdigest()


def tensor_digests(state: Mapping[str, Any]) -> dict[str, str]:
    """A short digest of each tensor, in the order of the ``state_dict``, to tell which of them differ."""
    return {
        name: digest_of({"": tensor})[:16] for key in state for name, tensor in tensors_in(state[key], key)
    }


def tensors_in(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested containers and packed parameters, with its path, in a fixed order."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key in sorted(state):
            yield from tensors_in(state[key], f"{name}.{key}")
    elif isinstance(state, list | tuple):
        for index, part in enumerate(state):
            yield from tensors_in(part, f"{name}[{index}]")
    elif isinstance(state, torch.ScriptObject):  # packed weights of recurrent layers
        yield from tensors_in(state.__getstate__(), name)


def _plain_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if not tensor.is_quantized:
        return (tensor,)
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return tensor.int_repr(), torch.tensor(
            [tensor.q_scale(), float(tensor.q_zero_point())], dtype=torch.float64
        )
    return tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
