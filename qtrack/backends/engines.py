"""What torch itself has of quantization: engines, and warnings of its own. Needs no torch.ao."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch

from qtrack.errors import BackendUnavailable
from qtrack.recipe import Engine

NOISE = (
    "torch.ao.quantization is deprecated",
    "Please use quant_min and quant_max",
    "must run observer before calling",
    "torch.quantize_per_tensor, torch.quantize_per_channel and other",
    "reduce_range will be deprecated",
    "To copy construct from a tensor",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings that torch.ao gives for its own defaults."""
    with warnings.catch_warnings():
        for message in NOISE:
            warnings.filterwarnings("ignore", message=f".*{message}")
        yield


def supported_engines() -> list[str]:
    """Engines whose kernels this build of torch and this processor have."""
    return [name for name in torch.backends.quantized.supported_engines if name != "none"]


@contextmanager
def using_engine(engine: Engine | None) -> Iterator[None]:
    """Run with this engine's kernels, None: as torch is; raises BackendUnavailable where it does not run."""
    if engine is None:
        yield
        return
    supported = supported_engines()
    if engine not in supported:
        raise BackendUnavailable(
            f"engine {engine!r} does not run here; this machine has {', '.join(supported)}"
        )
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def default_engine() -> Engine:
    """What torch takes on this machine."""
    return cast(Engine, torch.backends.quantized.engine)
