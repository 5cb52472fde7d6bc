"""An exported model as a module that can be trained, evaluated, copied and saved like any other."""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e.constant_fold import constant_fold

from qtrack.backends.aten import function_of
from qtrack.backends.base import BOTH, Side

QDQ = torch.ops.quantized_decomposed
WITH_TENSORS = {
    QDQ.quantize_per_tensor.default: QDQ.quantize_per_tensor.tensor,
    QDQ.dequantize_per_tensor.default: QDQ.dequantize_per_tensor.tensor,
}
WITH_NUMBERS = {new: old for old, new in WITH_TENSORS.items()}
TRAINING = {"batch_norm": 5, "dropout": 2}
"""Where an operator's arguments say whether the model is trained."""


class Exported(nn.Module):
    """An exported graph; ``train()`` and ``eval()`` reach BatchNorm and dropout in it.

    torchao's own switch for this replaces BatchNorm's momentum and eps by torch's defaults.
    """

    def __init__(self, program: GraphModule) -> None:
        super().__init__()
        self.program = program
        self.frozen_bn = False
        self.training = True
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.program(*args, **kwargs)

    def train(self, mode: bool = True) -> Exported:
        """Without the graph's own ``train``, which torch refuses for exported models."""
        self.training = mode
        changed = [self._switch(node, mode) for node in self.program.graph.nodes]
        if any(changed):
            self.program.recompile()
        return self

    def _switch(self, node: Node, mode: bool) -> bool:
        function = function_of(node)
        place = TRAINING.get(function)
        if place is None or len(node.args) <= place or not node.meta.get("trainable", node.args[place]):
            return False
        if function == "batch_norm" and node.args[3] is None:  # it has no running statistics to use instead
            return False
        node.meta["trainable"] = True
        wanted = mode and not (self.frozen_bn and function == "batch_norm")
        changed = node.args[place] is not wanted
        node.update_arg(place, wanted)
        return changed


def batch_norm(*arguments: Any) -> Any:
    """BatchNorm under a name that torchao's converter does not look for."""
    return torch.ops.aten.batch_norm.default(*arguments)


def rename(program: GraphModule, before: Any, after: Any) -> None:
    """Call another function instead."""
    for node in program.graph.nodes:
        if node.target is before:
            node.target = after
    program.recompile()


def plain(program: GraphModule) -> GraphModule:
    """A copy that bears ``eval()``, without effect, as torch's own exporter calls it."""
    copied = copy.deepcopy(program)
    for name in ("train", "eval"):
        vars(copied).pop(name, None)  # where torch put its refusal
    return copied


def hold_scales(program: GraphModule) -> None:
    """Scales and zero-points as buffers: written into the code, a ``state_dict`` would not have them."""
    count = 0
    for node in list(program.graph.nodes):
        if node.target not in WITH_TENSORS:
            continue
        source = node.args[0]
        if isinstance(source, Node) and source.target in WITH_NUMBERS:  # the other half of a pair
            scale, zero_point = source.args[1], source.args[2]
        else:
            with program.graph.inserting_before(node):
                scale = _buffer(program, f"scale_{count}", torch.tensor(float(node.args[1])))
                zero_point = _buffer(program, f"zero_point_{count}", torch.tensor(int(node.args[2])))
            count += 1
        node.args = (source, scale, zero_point, *node.args[3:])
        node.target = WITH_TENSORS[node.target]
    program.recompile()


def with_numbers(program: GraphModule) -> GraphModule:
    """The same with scales in the code, as compilers look for them; changes the program."""
    for node in program.graph.nodes:
        if node.target in WITH_NUMBERS and all(_is_held(argument) for argument in node.args[1:3]):
            scale, zero_point = (program.get_buffer(str(argument.target)) for argument in node.args[1:3])
            node.args = (node.args[0], float(scale), int(zero_point), *node.args[3:])
            node.target = WITH_NUMBERS[node.target]
    program.graph.eliminate_dead_code()
    program.recompile()
    return program


def keep_apart(program: GraphModule, layers: Collection[Node]) -> None:
    """Hide what follows these layers from torchao, which would fold it into weights that stay float."""
    for node in layers:
        users = list(node.users)
        with program.graph.inserting_after(node):
            guard = program.graph.call_function(torch.ops.aten.alias.default, (node,))
        for user in users:
            user.replace_input_with(node, guard)


def no_longer_apart(program: GraphModule) -> None:
    """The graph as it was before that."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)


def fold(program: GraphModule) -> None:
    """Hold weights as integers, and forget the float ones."""
    constant_fold(
        program,
        lambda node: (
            node.op == "call_function" and str(node.target).startswith("quantized_decomposed.quantize_per")
        ),
    )
    _drop_unused(program)


def _drop_unused(program: GraphModule) -> None:
    """Forget parameters and buffers that no node reads any more."""
    program.graph.eliminate_dead_code()
    used = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for name in [*dict(program.named_parameters()), *dict(program.named_buffers())]:
        if name not in used:
            owner, _, last = name.rpartition(".")
            delattr(program.get_submodule(owner), last)
    program.recompile()


def fold_batch_norm(program: GraphModule) -> None:
    """Fold BatchNorm, as it stands after training, into the convolution that it was trained with.

    The fake-quantized weight already has BatchNorm's factor in it; what is left is a bias. torchao's own
    folding finds the same by matching patterns that it exports anew at each call, which takes half a minute.
    """
    for node in list(program.graph.nodes):
        if function_of(node) == "batch_norm" and (trained := _trained_with(node)):
            _fold(program, node, *trained)
        elif function_of(node) == "add" and not node.users:  # counts the batches that training has seen
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.recompile()


def _trained_with(norm: Node) -> tuple[Node, Node, Node | None] | None:
    """The convolution, its weight with BatchNorm's factor, and its bias, as torchao trained them."""
    before: Any = norm.args[0]
    bias = None
    if function_of(before) == "add":
        before, bias = before.args[:2]
    if not (isinstance(before, Node) and function_of(before) == "div"):
        return None
    if norm.args[1] is None or norm.args[1] not in _ancestors(before.args[1]):  # a division of the user's own
        return None
    convolution: Any = before.args[0]
    weight: Any = convolution.args[1]
    scaled = weight.all_input_nodes[0] if weight.op == "call_module" else weight  # behind fake quantization
    return convolution, scaled, bias


def _ancestors(node: Any) -> set[Node]:
    """All nodes that a node depends on."""
    found: set[Node] = set()
    waiting = list(node.all_input_nodes) if isinstance(node, Node) else []
    while waiting:
        one = waiting.pop()
        waiting += [other for other in one.all_input_nodes if other not in found]
        found.add(one)
    return found


def _fold(program: GraphModule, norm: Node, convolution: Node, scaled: Node, bias: Node | None) -> None:
    gamma, beta, mean, variance = (value_of(program, argument) for argument in norm.args[1:5])
    factor = gamma / torch.sqrt(variance + norm.args[7])
    shift = -mean if bias is None else value_of(program, bias).flatten() - mean
    name = scaled.name
    program.register_parameter(f"{name}_folded", nn.Parameter(value_of(program, scaled)))
    program.register_parameter(f"{name}_bias", nn.Parameter(beta + shift * factor))
    with program.graph.inserting_before(scaled):
        weight = program.graph.get_attr(f"{name}_folded")
    with program.graph.inserting_before(convolution):
        folded = program.graph.get_attr(f"{name}_bias")
    scaled.replace_all_uses_with(weight)
    convolution.args = (*convolution.args[:2], folded, *convolution.args[3:])
    norm.replace_all_uses_with(convolution)


def value_of(program: GraphModule, node: Any) -> Any:
    """What a node gives that depends on parameters alone."""
    if not isinstance(node, Node):
        return node
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(program)
        return value.detach() if isinstance(value, Tensor) else value
    assert callable(node.target)
    return node.target(*map_arg(node.args, lambda one: value_of(program, one)))


def in_float(program: GraphModule, sides: Collection[Side] = BOTH) -> GraphModule:
    """Without conversions on these sides: what the float model computes, BatchNorm folded.

    Changes the program.
    """
    for node in list(program.graph.nodes):
        if str(node.target).startswith("quantized_decomposed.dequantize"):
            source = node.args[0]
            while isinstance(source, Node) and str(source.target).startswith("quantized_decomposed.quantize"):
                source = source.args[0]
            if ("weights" if _is_held(source) else "activations") in sides:
                node.replace_all_uses_with(source)
    program.graph.eliminate_dead_code()
    program.recompile()
    return program


def _is_held(argument: Any) -> bool:
    return isinstance(argument, Node) and argument.op == "get_attr"


def _buffer(program: GraphModule, name: str, value: Tensor) -> Node:
    program.register_buffer(name, value)
    return program.graph.get_attr(name)
