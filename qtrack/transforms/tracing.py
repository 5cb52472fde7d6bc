"""Which layers of a float model stand beside each other: found in the parts of it that can be traced.

torch's own modules are not looked into, nor those that the recipe keeps whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.fx import Node

from qtrack.backends.fx_tracing import failure
from qtrack.backends.messages import first_line
from qtrack.backends.tracing import Traced, traced
from qtrack.errors import BackendError
from qtrack.recipe import bare_name

NORM_OF: dict[type, type] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
LAYERS = tuple(NORM_OF)
NOTHING = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
"""What does nothing in evaluation."""
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


class Normed(NamedTuple):
    """A BatchNorm that can be folded into a layer, and what stands between them."""

    layer: str
    norm: str
    between: tuple[str, ...]
    """Names of modules; functions by their own name."""


class Adjacent(NamedTuple):
    """Two layers of which the first feeds the second, and nothing else."""

    first: str
    second: str


class Folded(nn.Identity):
    """Stands under the name of what was folded away.

    It is no module of torch's, so that torch.ao traces through it: a convolution and the ReLU behind it are
    neighbours again, and are fused.
    """


def parts_of(model: nn.Module, whole: Collection[str]) -> list[Traced]:
    """Whatever can be traced; raises BackendError, naming the module, where nothing can."""
    parts = list(traced(model, whole=whole))
    found = None if parts else failure(model, whole)
    if found:
        name, cause = found
        where = f"module {name!r}" if name else "the model's own forward()"
        raise BackendError(
            f"transforms need a part of the model that can be traced: {where}: {first_line(cause)}"
        )
    return parts


def normed(parts: Collection[Traced]) -> list[Normed]:
    """Every BatchNorm that can be folded."""
    return [_normed(part, *chain) for part in parts for chain in _norm_chains(part)]


def adjacent(parts: Collection[Traced]) -> list[Adjacent]:
    """Every two layers between which channels can be rescaled unnoticed."""
    return [
        Adjacent(part.name(node), part.name(other))
        for part in parts
        for node in part.graph.nodes
        if plain(part, node, LAYERS) and (other := _fed(part, node))
    ]


def plain(part: Traced, node: Node, kinds: tuple[type, ...]) -> bool:
    """Does the node call one of torch's own modules, which nothing else calls, reads or hooks into?"""
    module = part.once(node)
    reads = (str(other.target) for other in part.graph.nodes if other.op == "get_attr")
    return (
        type(module) in kinds
        and module is not None
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not any(name.startswith(f"{node.target}.") for name in reads)
    )


def _norm_chains(part: Traced) -> Iterator[tuple[Node, list[Node], Node]]:
    """Layer, what does nothing behind it, and BatchNorm."""
    for node in part.graph.nodes:
        if plain(part, node, LAYERS):
            between: list[Node] = []
            reader = _only_reader(node)
            while reader and _does_nothing(part, reader):
                between.append(reader)
                reader = _only_reader(reader)
            if reader and _folds(part, node, reader):
                yield node, between, reader


def _normed(part: Traced, layer: Node, between: list[Node], norm: Node) -> Normed:
    names = (part.name(node) if node.op == "call_module" else function_name(node) for node in between)
    return Normed(part.name(layer), part.name(norm), tuple(names))


def _folds(part: Traced, layer: Node, norm: Node) -> bool:
    """Does BatchNorm scale the layer's output channels, by statistics of its own?"""
    module, found = part.once(layer), part.once(norm)
    if module is None or not isinstance(found, nn.modules.batchnorm._BatchNorm):
        return False
    fits = found.running_mean is not None and found.num_features == outputs_of(module)
    return plain(part, norm, (NORM_OF[type(module)],)) and fits


def _fed(part: Traced, node: Node) -> Node | None:
    """The layer of the same kind that alone reads what comes of a layer, past ReLU and what does nothing."""
    folded = {norm for _, _, norm in _norm_chains(part)}
    reader = _only_reader(node)
    while reader and (reader in folded or _is_relu(part, reader) or _does_nothing(part, reader)):
        reader = _only_reader(reader)
    first = part.once(node)
    if reader is None or first is None or not plain(part, reader, (type(first),)):
        return None
    second = part.once(reader)
    return reader if second is not None and inputs_of(second) == outputs_of(first) else None


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _does_nothing(part: Traced, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(part.model.get_submodule(str(node.target)), NOTHING)
    trains = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
    return function_name(node) in DROPOUTS and trains is False


def _is_relu(part: Traced, node: Node) -> bool:
    if node.op == "call_module":
        return type(part.model.get_submodule(str(node.target))) is nn.ReLU
    return function_name(node) == "relu"


def function_name(node: Node) -> str:
    """``relu`` for ``torch.relu``, ``F.relu`` and ``x.relu()``; empty for a module."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return bare_name(getattr(node.target, "__name__", str(node.target)))


def outputs_of(layer: Any) -> int:
    """Output channels."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def inputs_of(layer: Any) -> int:
    """Input channels."""
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)
