"""What eager mode may know of a model's forward(), from the parts of it that can be traced.

What torch.ao can fuse, and what hands integers on from layer to layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn
from torch.ao.quantization.fuser_method_mappings import get_fuser_method
from torch.fx import Node

from qtrack.backends.torch_ao import TRANSPOSED
from qtrack.backends.tracing import Traced
from qtrack.recipe import bare_name

HEADS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *TRANSPOSED,
    *(nn.Linear, nn.BatchNorm2d, nn.BatchNorm3d),
)
LONGEST_CHAIN = 3
PASSES = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Identity,
    nn.ReLU,
)
PASSING_FUNCTIONS = ("flatten", "max_pool2d", "relu")
"""What hands quantized values on as they are, or cuts them off."""


def chains(part: Traced, *, training: bool) -> Iterator[list[Node]]:
    """Runs of modules that torch.ao fuses into one, each the only reader of the one before.

    For training it has no transposed convolutions fused.
    """
    taken: set[Node] = set()
    for node in part.graph.nodes:
        head = part.once(node)
        starts = isinstance(head, HEADS) and not (training and isinstance(head, TRANSPOSED))
        chain = [node] if starts and node not in taken else []
        while chain and len(chain) < LONGEST_CHAIN and (after := _only_reader(part, chain[-1])):
            chain.append(after)
        while len(chain) > 1 and not _fuses(part, chain):
            chain.pop()
        if len(chain) > 1:
            taken |= set(chain)
            yield chain


def readers(node: Node, is_layer: Callable[[Node], bool], part: Traced) -> set[Node] | None:
    """The layers that read a value, past what hands it on; None where anything else does."""
    found: set[Node] = set()
    for user in node.users:
        if is_layer(user):
            found.add(user)
        elif _passes(user, part) and (behind := readers(user, is_layer, part)) is not None:
            found |= behind
        else:
            return None
    return found


def _only_reader(part: Traced, node: Node) -> Node | None:
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if part.once(user) is not None else None


def _fuses(part: Traced, chain: list[Node]) -> bool:
    types = tuple(type(part.once(node)) for node in chain)
    try:
        return get_fuser_method(types) is not None
    except (NotImplementedError, AssertionError):  # its way to say no
        return False


def _passes(node: Node, part: Traced) -> bool:
    if node.op == "call_module":
        return isinstance(part.model.get_submodule(str(node.target)), PASSES)
    name = getattr(node.target, "__name__", str(node.target))
    return node.op in ("call_function", "call_method") and bare_name(name) in PASSING_FUNCTIONS
