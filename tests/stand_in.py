"""A CUDA device without the hardware: tensors of the CPU that are known to be on it, and are kept apart.

What real devices refuse is refused here: an operator on tensors of both sides, numbers read as numpy arrays,
kernels on integers. That is told by storages, so views, gradients and what operators make belong where they
come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HERE = torch.device("cuda:0")
NAME = "a stand-in"
CROSSING = {"aten.copy_.default", "aten.index.Tensor", "aten.detach.default", "aten.set_.source_Tensor"}
"""Operators that may see both sides."""


class StandIn(TorchDispatchMode):
    """Where every operator ran is counted, by phase: ``ran["calibrate"]["cuda", "convolution"]``."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[int, StorageWeakRef] = {}
        self.phase_name = ""
        self.ran: dict[str, Counter[tuple[str, str]]] = {}
        self.generators: list[Tensor] = []
        """States that the device's own generator was put into; numbers come from the CPU's."""
        self.within = False
        """In an operator on the device, so that what it makes on its way is there too."""

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.there

    def take(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.there[storage._cdata] = StorageWeakRef(storage)  # its address is no other's while this is held
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in given if self.holds(tensor)]
        here = [tensor for tensor in given if not self.holds(tensor) and tensor.dim() and tensor.numel()]
        if there and here and str(func) not in CROSSING:
            raise RuntimeError(f"Expected all tensors to be on the same device, in {func}")
        if there and func.namespace == "quantized":
            raise NotImplementedError(f"Could not run '{func}' with arguments from the 'CUDA' backend")
        place = "cuda" if there else "cpu"
        self.ran.setdefault(self.phase_name, Counter())[place, func._overloadpacket.__name__] += 1
        found = func(*args, **(kwargs or {}))
        if str(func) != "aten.copy_.default" and (there or (self.within and not given)):
            self.take_all(found)
        return found

    def take_all(self, found):
        return tree_map(lambda leaf: self.take(leaf) if isinstance(leaf, Tensor) else leaf, found)

    def has_any(self, given) -> bool:
        return any(isinstance(leaf, Tensor) and self.holds(leaf) for leaf in tree_leaves(given))

    def places(self, phase: str, *operators: str) -> set[str]:
        """Where any of these operators ran in a phase."""
        return {place for place, name in self.ran.get(phase, ()) if name in operators}

    # a monitor

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[object]:
        before, self.phase_name = self.phase_name, name
        try:
            yield lambda done: None
        finally:
            self.phase_name = before

    def report(self, key: str, value: float, step: int) -> None:
        pass


class _Moves(TorchFunctionMode):
    """What is asked for on the device is made on the CPU and taken there."""

    def __init__(self, stand_in: StandIn) -> None:
        super().__init__()
        self.stand_in = stand_in

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, stand_in = dict(kwargs or {}), self.stand_in
        if func == Tensor.device.__get__:
            return HERE if stand_in.holds(args[0]) else func(*args)
        if func in (Tensor.is_cuda.__get__, Tensor.is_cpu.__get__):
            return stand_in.holds(args[0]) == (func == Tensor.is_cuda.__get__)
        if func == Tensor.numpy and stand_in.holds(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func in (Tensor.cpu, Tensor.cuda, Tensor.to):
            return self._moved(func, *args, **kwargs)
        made = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        before, stand_in.within = stand_in.within, made or stand_in.has_any((args, kwargs))
        try:
            found = func(*args, **(kwargs | {"device": "cpu"} if made else kwargs))
        finally:
            stand_in.within = before
        return stand_in.take_all(found) if made else found

    def _moved(self, func, tensor, *rest, copy=False, **kwargs):
        wanted, dtype = self._wanted(func, rest, kwargs)
        layout = {name: value for name, value in kwargs.items() if name == "memory_format"}
        held = self.stand_in.holds(tensor)
        if wanted is None or (wanted.type == "cuda") == held:
            return tensor.to(dtype or tensor.dtype, copy=copy, **layout)
        with _unseen(self.stand_in):
            copied = tensor.to(dtype or tensor.dtype, copy=True, **layout)
        return copied if held else self.stand_in.take(copied)

    def _wanted(self, func, rest, kwargs):
        if func != Tensor.to:
            return torch.device(func.__name__), None
        if rest and isinstance(rest[0], Tensor):
            return rest[0].device, rest[0].dtype
        return torch._C._nn._parse_to(*rest, **kwargs)[:2]


@contextmanager
def _unseen(stand_in: StandIn) -> Iterator[None]:
    """Out of the device's sight."""
    there, stand_in.there = stand_in.there, {}
    try:
        yield
    finally:
        stand_in.there = there


@contextmanager
def stand_in(monkeypatch) -> Iterator[StandIn]:
    """As if there was one CUDA device."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: NAME)
    mode = StandIn()
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: mode.generators.append(state))
    with mode, _Moves(mode):
        yield mode
