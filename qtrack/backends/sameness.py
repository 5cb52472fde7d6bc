"""Whether a float model that was rewritten still computes what it did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from qtrack.task import Inputs

SAME = 1e-3
"""How far a rewritten model may be from the float one, as a share of the largest output."""


def computes_the_same(model: nn.Module, rewritten: nn.Module, example: Inputs) -> bool:
    """Do both come to the same outputs on an example? Both are in evaluation afterwards."""
    with torch.no_grad():
        expected, found = _run(model.eval(), example), _run(rewritten.eval(), example)
    return all(
        torch.allclose(one, other, rtol=SAME, atol=SAME * float(one.abs().max()), equal_nan=True)
        for one, other in zip(expected, found, strict=True)
    )


def _run(model: nn.Module, example: Inputs) -> list[Tensor]:
    """All tensors of the output; chance is the same each time, and none is taken from the user's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output: Any = model(**example) if isinstance(example, dict) else model(*example)
    return [leaf.float() for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
