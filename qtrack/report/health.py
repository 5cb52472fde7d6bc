"""What works on this machine: each part tried, not only looked up."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, NamedTuple

from qtrack.report.tables import Column, Table

if TYPE_CHECKING:
    import torch

State = Literal["ok", "absent", "broken"]
CHANNELS = 64
LARGEST_WEIGHT, LARGEST_ACTIVATION = 127, 255
STEPS = 200  # of the output: below its 255, so that it does not saturate itself


class Check(NamedTuple):
    """One thing that was tried."""

    what: str
    state: State
    detail: str
    necessary: bool = True

    @property
    def fails(self) -> bool:
        return self.necessary and self.state != "ok"


def machine() -> Iterator[Check]:
    """Python, packages, processor, engines, CUDA devices."""
    supported = sys.version_info >= (3, 11)
    yield Check(
        "python",
        "ok" if supported else "broken",
        platform.python_version() + ("" if supported else "; needs 3.11"),
    )
    yield _package("mlflow")
    yield _package("torchao", necessary=False)
    torch = _package("torch")
    yield torch
    if torch.state == "ok":
        yield from _processor()
        yield from _engines()
        yield _cuda()


def health(checks: list[Check]) -> Table:
    """The checks as a table."""
    columns = (Column("", "left"), Column("state", "left"), Column("", "left"))
    return Table(columns, tuple((check.what, check.state, check.detail) for check in checks))


def _package(name: str, *, necessary: bool = True) -> Check:
    try:
        if find_spec(name) is None:
            return Check(name, "absent", f"pip install {name}" if necessary else "optional", necessary)
        return Check(name, "ok", version(name), necessary)
    except (PackageNotFoundError, ValueError) as error:
        return Check(name, "broken", str(error), necessary)


def _processor() -> Iterator[Check]:
    try:
        import torch

        from qtrack.environment import cpu_model, has_vnni
    except Exception as error:  # a broken installation can raise anything
        yield Check("torch", "broken", f"cannot be imported: {type(error).__name__}: {error}")
        return
    capability = torch.backends.cpu.get_cpu_capability()
    vnni = "8-bit dot products (VNNI)" if has_vnni() else "no 8-bit dot products (VNNI)"
    yield Check("processor", "ok", f"{cpu_model()}; {capability}; {vnni}")
    yield Check("threads", "ok", f"{torch.get_num_threads()} of {os.cpu_count()} processors")


def _cuda() -> Check:
    import torch

    from qtrack.engine.devices import cuda_devices

    found = ", ".join(f"{name} {kind}" for name, kind in cuda_devices().items())
    absent = "none is visible" if torch.version.cuda else f"torch {torch.__version__} is built without it"
    return Check("cuda", "ok" if found else "absent", found or absent, necessary=False)


def _engines() -> Iterator[Check]:
    import torch

    known = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    default = torch.backends.quantized.engine
    for name in known:
        check = _engine(name)
        yield check._replace(
            what=f"engine {name}", detail=check.detail + (" (default)" if name == default else "")
        )
    if not known:
        yield Check("engines", "absent", "this build of torch has no quantized kernels")


def _engine(name: str) -> Check:
    """Multiply the largest 8-bit numbers: engines without VNNI may overflow their 16-bit accumulators."""
    try:
        with _selected(name):
            kept = min(_largest_linear(), _largest_depthwise())
    except Exception as error:  # each engine fails in its own way
        said = " ".join(str(error).split())[:100]
        return Check(name, "broken", f"{type(error).__name__}: {said}", necessary=False)
    if kept > 0.98:
        return Check(name, "ok", "exact with the full 8 bits; reduce_range is not needed", necessary=False)
    said = f"sums overflow, {100 - 100 * kept:.0f}% lost at worst; set reduce_range: true"
    return Check(name, "ok", said, necessary=False)


def _largest_linear() -> float:
    """The share of the true product that a linear layer keeps."""
    import torch

    packed = torch.ops.quantized.linear_prepack(_integers((8, CHANNELS), LARGEST_WEIGHT, torch.qint8), None)
    inputs = _integers((4, CHANNELS), LARGEST_ACTIVATION, torch.quint8)
    true = float(CHANNELS * LARGEST_WEIGHT * LARGEST_ACTIVATION)
    return float(torch.ops.quantized.linear(inputs, packed, true / STEPS, 0).dequantize().mean()) / true


def _largest_depthwise() -> float:
    """The same of a 3x3 depthwise convolution, for which some engines have kernels of their own."""
    import torch

    weights = _integers((CHANNELS, 1, 3, 3), LARGEST_WEIGHT, torch.qint8)
    packed = torch.ops.quantized.conv2d_prepack(weights, None, [1, 1], [0, 0], [1, 1], CHANNELS)
    inputs = _integers((1, CHANNELS, 8, 8), LARGEST_ACTIVATION, torch.quint8)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    true = float(9 * LARGEST_WEIGHT * LARGEST_ACTIVATION)
    return float(torch.ops.quantized.conv2d(inputs, packed, true / STEPS, 0).dequantize().mean()) / true


def _integers(shape: tuple[int, ...], value: int, dtype: torch.dtype) -> torch.Tensor:
    import torch

    return torch.quantize_per_tensor(torch.full(shape, float(value)), 1.0, 0, dtype)


@contextmanager
def _selected(engine: str) -> Iterator[None]:
    import torch

    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*quantized tensor creation functions", UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = before
