"""A converted export on integer kernels: torchao's lowering for x86, or torch.compile with inductor.

Both put oneDNN's integer kernels in place of what the graph has between conversions, for batches of the
example's size: at another, torchao's graph raises and inductor compiles again. Scales have to be numbers in
the code: of a graph that holds them as buffers, freezing ends in an AssertionError (torch 2.13). Weights with
one scale per tensor are not in the patterns of either, and stay in float arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.fx import GraphModule

from qtrack.backends.messages import first_line, unheard
from qtrack.backends.pt2e_graph import Exported, plain, with_numbers
from qtrack.errors import BackendError


def lowered(model: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """By torchao, in about a second; raises BackendError where it cannot.

    It gives convolutions channels-last outputs, of which a graph with a ``flatten`` may not take a view.
    """
    with torch.no_grad(), _told("lowered"):
        from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86  # warns of torch.jit

        graph: nn.Module = lower_pt2e_quantized_to_x86(_numbered(model), example)
        graph(*example)
    return graph


def compiled(model: nn.Module, example: tuple[Tensor, ...], *, freezing: bool) -> Any:
    """By inductor, in about half a minute; to be called under ``torch.no_grad()``, else it compiles again.

    Only freezing makes constants of the weights, and integer kernels of the layers; with some networks not
    for input in channels-last form, which then stays in float arithmetic.
    Raises BackendError where it cannot.
    """
    with torch.no_grad(), _told("compiled"), torch._inductor.config.patch(freezing=freezing):
        # given as an option to torch.compile, freezing fails: UnsupportedOperatorException (torch 2.13)
        program = torch.compile(_numbered(model), dynamic=False)
        program(*example)
    return program


def _numbered(model: nn.Module) -> GraphModule:
    assert isinstance(model, Exported)
    return with_numbers(plain(model.program))


@contextmanager
def _told(how: str) -> Iterator[None]:
    """Without what torch says of its own code, and with its exceptions as ours."""
    try:
        with unheard():
            yield
    except Exception as cause:  # inductor raises whatever its passes led to
        raise BackendError(
            f"the model cannot be {how}: {type(cause).__name__}: {first_line(cause)}"
        ) from cause
