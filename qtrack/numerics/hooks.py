"""Runs a network as it is, without a graph, handing out the modules that one wants to look at.

The network runs in a thread of its own that waits at each wanted module until the next step is asked for; so
two networks can be read side by side while neither keeps its activations.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from queue import Queue
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from qtrack.numerics.steps import OUTPUT, Inputs, Step, cannot_rerun

METHODS = ("add", "mul", "cat", "add_relu", "add_scalar", "mul_scalar", "matmul", "add_relu_scalar")
"""By which eager models call FloatFunctional, whose forward is never used."""


class _Stopped(BaseException):
    """Nobody asks for further steps."""


class HookedModel:
    """A module to be run many times; a step is named after its module, with ``#2`` on the second call."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def run(self, inputs: Inputs, wanted: Collection[str]) -> Iterator[Step]:
        handoff = _Handoff()
        thread = threading.Thread(target=self._work, args=(inputs, wanted, handoff), daemon=True)
        thread.start()
        try:
            yield from handoff.steps()
        finally:
            handoff.stop()
            thread.join()

    def _work(self, inputs: Inputs, wanted: Collection[str], handoff: _Handoff) -> None:
        try:
            with torch.inference_mode(), _Watch(self.model, wanted, handoff):
                handoff.resume.get()
                output = self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)
                handoff.offer(Step(OUTPUT, (), output, cannot_rerun))
        except _Stopped:
            pass
        except BaseException as error:  # handed to the thread that asked
            handoff.offered.put(error)


class _Handoff:
    """Passes steps one at a time from the thread that runs the network to the one that reads it."""

    def __init__(self) -> None:
        self.offered: Queue[Step | BaseException] = Queue()
        self.resume: Queue[bool] = Queue()

    def offer(self, step: Step) -> None:
        self.offered.put(step)
        if step.node != OUTPUT and not self.resume.get():
            raise _Stopped

    def steps(self) -> Iterator[Step]:
        while True:
            self.resume.put(True)
            step = self.offered.get()
            if isinstance(step, BaseException):
                raise step
            yield step
            if step.node == OUTPUT:
                return

    def stop(self) -> None:
        self.resume.put(False)


class _Watch(ExitStack):
    """Hooks on the wanted modules for the time of one run."""

    def __init__(self, model: nn.Module, wanted: Collection[str], handoff: _Handoff) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.wanted = wanted
        self.handoff = handoff
        self.replaying = False
        for name, module in model.named_modules():
            if name.partition("#")[0] in {node.partition("#")[0] for node in wanted}:
                self._watch(name, module)

    def _watch(self, name: str, module: nn.Module) -> None:
        if is_functional(module):
            for method in METHODS:
                if hasattr(module, method):
                    self._wrap(name, module, method)
            return
        hook = module.register_forward_hook(
            lambda module, args, kwargs, output: self._met(name, module, (args, kwargs), output),
            with_kwargs=True,
        )
        self.callback(hook.remove)

    def _wrap(self, name: str, module: nn.Module, method: str) -> None:
        original: Callable[..., Any] = getattr(module, method)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            self._met(name, original, (args, kwargs), output)
            return output

        module.__dict__[method] = wrapped
        self.callback(module.__dict__.pop, method)

    def _met(self, name: str, function: Callable[..., Any], fed: Any, output: Any) -> None:
        if self.replaying:
            return
        self.calls[name] += 1
        node = name if self.calls[name] == 1 else f"{name}#{self.calls[name]}"
        if node not in self.wanted:
            return
        inputs = tuple(leaf for leaf in tree_flatten(fed)[0] if isinstance(leaf, Tensor))

        def rerun(replacements: tuple[Tensor, ...]) -> Any:
            new = iter(replacements)
            args, kwargs = tree_map(lambda leaf: next(new) if isinstance(leaf, Tensor) else leaf, fed)
            self.replaying = True
            try:
                return function(*args, **kwargs)
            finally:
                self.replaying = False

        self.handoff.offer(Step(node, inputs, output, rerun))


def is_functional(module: nn.Module) -> bool:
    """Does it stand for an operator (FloatFunctional and its kin): called by method, never as a module?"""
    return callable(getattr(module, "add_relu", None))
