"""Networks with one known fault each, on real data: what a diagnosis must find.

Two architectures, a residual convolutional network and a multilayer perceptron, are trained on scikit-learn's
digits and lose nothing in int8 as they are. A case plants one fault in the weights, the data, the recipe or
the backend; planted in the weights it leaves the float function as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from qtrack import Task
from qtrack.backends.fx import FxBackend
from qtrack.recipe import Recipe

Split = tuple[Tensor, Tensor]
WIDTH = 48
HEALTHY = "healthy"
RAISED = 4.0
"""What is added to every pixel of an outlier, four times what ink gives."""


PER_CHANNEL = Recipe(engine="x86").with_weights(granularity="per_channel")


class Tail(nn.Module):
    """What both networks end with; faults that need a layer of a certain kind have it here."""

    def __init__(self, inputs: int, kind: str):
        super().__init__()
        self.kind = kind
        self.hidden = nn.Linear(inputs, WIDTH, bias=kind != "varying")
        self.norm = nn.LayerNorm(WIDTH) if kind == "varying" else nn.Identity()
        self.relu = nn.ReLU()
        self.head = nn.Linear(WIDTH, 10)
        if kind == "ratio":
            self.gate = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "varying":
            x = x * torch.exp(6 * torch.sin(200 * x.mean(1, keepdim=True)))
        hidden = self.relu(self.norm(self.hidden(x)))
        logits = self.head(hidden)
        if self.kind == "ratio":
            gate = torch.sigmoid(self.gate(hidden))
            logits = logits * gate / gate
        return logits


class Conv(nn.Module):
    """Residual blocks; the second input channel is a mask that real data never set."""

    def __init__(self, tail: str = "", gap: type[nn.Module] = nn.Identity):
        super().__init__()
        self.first = nn.Conv2d(2, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.gap = gap() if gap is nn.Identity else gap(0.1)
        self.bn = nn.BatchNorm2d(32)
        self.third = nn.Conv2d(32, 32, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.tail = Tail(32 * 4, tail)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.bn(self.gap(self.second(x))))
        x = x + self.relu(self.third(x))
        return self.tail(self.pool(x).flatten(1))


class Mlp(nn.Module):
    """Linear layers with BatchNorm; half of its inputs are a mask that real data never set."""

    def __init__(self, tail: str = "", gap: type[nn.Module] = nn.Identity):
        super().__init__()
        self.first = nn.Linear(128, 96)
        self.relu = nn.ReLU()
        self.second = nn.Linear(96, 96)
        self.gap = gap() if gap is nn.Identity else gap(0.1)
        self.bn = nn.BatchNorm1d(96)
        self.third = nn.Linear(96, 96)
        self.tail = Tail(96, tail)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x.flatten(1)))
        x = self.relu(self.bn(self.gap(self.second(x))))
        x = x + self.relu(self.third(x))
        return self.tail(x)


class Separable(nn.Module):
    """A depthwise layer and hard swish; no threshold of the diagnosis was chosen on it."""

    def __init__(self, tail: str = "", gap: type[nn.Module] = nn.Identity):
        super().__init__()
        self.first = nn.Conv2d(2, 24, 3, padding=1)
        self.swish = nn.Hardswish()
        self.second = nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.gap = gap() if gap is nn.Identity else gap(0.1)
        self.bn = nn.BatchNorm2d(48)
        self.third = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.tail = Tail(48 * 4, tail)

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.first(x))
        x = self.swish(self.bn(self.gap(self.second(x))))
        return self.tail(self.pool(self.swish(self.third(x))).flatten(1))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"conv": Conv, "mlp": Mlp}
HELD_OUT: dict[str, Callable[..., nn.Module]] = {"separable": Separable}


@cache
def splits(dim: bool = False, twin: bool = False) -> dict[str, Split]:
    """Images of two channels, the second one empty; where ``dim``, ones have a thirtieth of the ink.

    Where ``twin``, both channels are the image.
    """
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16).float(), torch.tensor(digits.target)
    images = torch.stack([images, images if twin else torch.zeros_like(images)], 1)
    if dim:
        images[labels == 1] /= 30
    left, found = list(range(len(labels))), {}
    for name, size in {"validation": 600, "calibration": 160}.items():
        left, taken = train_test_split(left, test_size=size, stratify=labels[left], random_state=0)
        found[name] = images[taken], labels[taken]
    return {"training": (images[left], labels[left]), **found}


@cache
def trained(
    architecture: str,
    tail: str = "",
    gap: type[nn.Module] = nn.Identity,
    *,
    binary: bool = False,
    dim: bool = False,
    raised: bool = False,
) -> nn.Module:
    """A network trained on the digits.

    With ``binary`` (on twin images) its first layer has weights of one size; ``raised``, it knows outliers.
    """
    torch.manual_seed(0)
    net = (ARCHITECTURES | HELD_OUT)[architecture](tail, gap)
    images, labels = splits(dim, binary)["training"]
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.01)
    for epoch in range(25):
        if binary and epoch == 12:
            make_binary(net)
        for picked in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            noisy = images[picked] * (0.8 + 0.4 * torch.rand(len(picked), 1, 1, 1))
            if raised:
                noisy[: len(noisy) // 4, 0] += RAISED
            F.cross_entropy(net(noisy), labels[picked], label_smoothing=0.05).backward()
            optimizer.step()
    return net.eval()


def make_binary(net: Any) -> None:
    with torch.no_grad():
        weight = net.first.weight
        weight.copy_(weight.sign() * weight.abs().mean())
    weight.requires_grad_(False)


def changed(net: nn.Module, change: Callable[[Any], None]) -> nn.Module:
    """A copy with something done to its weights."""
    import copy

    found = copy.deepcopy(net)
    with torch.no_grad():
        change(found)
    return found


@dataclass(frozen=True)
class Case:
    """A network with one fault."""

    fault: str
    architecture: str
    causes: tuple[str, ...]
    """The causes that name it; none where it is healthy."""
    category: str | None
    """What kind of error it is, where there is only one answer."""
    make: Callable[[], nn.Module] = field(repr=False)
    data: Callable[[dict[str, Split]], dict[str, Split]] = field(default=lambda found: found, repr=False)
    recipe: Recipe = PER_CHANNEL
    dim: bool = False
    """Are ones dim in all splits?"""
    twin: bool = False
    """Are both channels the image?"""
    backend: Callable[[], Any] = field(default=nullcontext, repr=False)
    """Makes the backend faulty for a while."""
    recoverable: bool = True
    """Is there a loss, and can a recipe undo it?"""

    @property
    def name(self) -> str:
        return f"{self.architecture}: {self.fault}"

    def task(self) -> Task:
        """The task of this case."""
        return PlantedTask(self)


class PlantedTask(Task):
    name = "planted"

    def __init__(self, case: Case):
        self.case = case
        self.splits = case.data(dict(splits(case.dim, case.twin)))

    def model(self) -> nn.Module:
        return changed(self.case.make(), lambda net: None)

    def _batches(self, split: str) -> list[Split]:
        inputs, labels = self.splits[split]
        return list(zip(inputs.split(64), labels.split(64), strict=True))

    def calibration(self) -> list[Split]:
        return self._batches("calibration")

    def validation(self) -> list[Split]:
        return self._batches("validation")

    def training(self) -> list[Split]:
        return self._batches("training")

    def loss(self, output: Tensor, batch: Split) -> Tensor:
        return F.cross_entropy(output, batch[1])


# What is planted --------------------------------------------------------------------------------------------


def skewed(net: Any) -> None:
    """Three channels of the first layer have weights 400 times larger, on a mask that is never set."""
    weight = net.first.weight
    largest = 400 * weight.abs().max()
    if weight.dim() == 4:
        weight[:3, 1] = largest
    else:
        weight[:3, 64:] = largest


def unequal_norm(net: Any) -> None:
    """Channels before BatchNorm differ in range by e^16; BatchNorm takes that back."""
    generator = torch.Generator().manual_seed(1)
    s = torch.exp(16 * torch.rand(net.bn.num_features, generator=generator) - 8)
    layer, norm = net.second, net.bn
    layer.weight *= s.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias *= s
    norm.running_mean *= s
    norm.running_var.copy_((norm.running_var + norm.eps) * s * s)
    norm.eps = 0.0


def outliers(split: Split, share: float, seed: int = 0) -> Split:
    """Some samples are three hundred times as bright."""
    images, labels = split
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(labels), generator=generator)[: max(round(share * len(labels)), 1)]
    bright = images.clone()
    bright[picked] *= 300
    return bright, labels


def wide_gate(net: Any) -> None:
    """What the logits are multiplied and divided by spans many orders of magnitude."""
    net.tail.gate.weight *= 8
    net.tail.gate.bias.fill_(-4.0)


def raised(split: Split) -> Split:
    """Some samples, three in a hundred, lie on a bright ground."""
    images, labels = split
    picked = torch.arange(len(labels)) % 33 == 7
    found = images.clone()
    found[picked, 0] += RAISED
    return found, labels


def of_one_class(found: dict[str, Split]) -> dict[str, Split]:
    """Calibration with ones alone, more of which come from training."""
    images = torch.cat([found["calibration"][0], found["training"][0]])
    labels = torch.cat([found["calibration"][1], found["training"][1]])
    ones = images[labels == 1]
    again = torch.cat([ones, 0.97 * ones, 0.94 * ones])[:160]
    return {**found, "calibration": (again, torch.ones(160, dtype=torch.long))}


def few(found: dict[str, Split]) -> dict[str, Split]:
    """Eight samples, and as chance will have it, mostly dim ones."""
    images, labels = found["calibration"]
    order = images.flatten(1).sum(1).argsort()[:8]
    return {**found, "calibration": (images[order], labels[order])}


def duplicated(found: dict[str, Split]) -> dict[str, Split]:
    """The same eight samples twenty times."""
    images, labels = few(found)["calibration"]
    return {**found, "calibration": (images.repeat(20, 1, 1, 1), labels.repeat(20))}


def overlapping(found: dict[str, Split]) -> dict[str, Split]:
    return {
        **found,
        "calibration": tuple(
            torch.cat([one[:80], other[:80]])
            for one, other in zip(found["calibration"], found["validation"], strict=True)
        ),
    }


@contextmanager
def converting(change: Callable[[Any], None]) -> Iterator[None]:
    """The fx backend with something wrong in what it converts to."""
    right = FxBackend.convert

    def wrong(self: Any, prepared: Any, example: Any) -> Any:
        found = right(self, prepared, example)
        change(found.model)
        return found

    FxBackend.convert = wrong  # type: ignore[method-assign]
    try:
        yield
    finally:
        FxBackend.convert = right  # type: ignore[method-assign]


def rebuilt(integers: Tensor, like: Tensor) -> Tensor:
    return torch._make_per_tensor_quantized_tensor(
        integers.clamp(0, 255).to(torch.uint8), like.q_scale(), like.q_zero_point()
    )


def wrong_kernel(model: Any) -> None:
    """A layer's kernel puts each channel in its neighbour's place."""
    kernel = model.tail.hidden
    if "quantized" not in type(kernel).__module__:
        return
    right = kernel.forward

    def wrong(x: Tensor) -> Tensor:
        found = right(x)
        return rebuilt(found.int_repr().int().roll(1, 1), found)

    kernel.forward = wrong


def saturating_kernel(model: Any) -> None:
    """The first layer's kernel adds pairs of products in 16 bits, as fbgemm does without VNNI."""
    kernel = model.first
    if "quantized" not in type(kernel).__module__:
        return
    right = kernel.forward

    def wrong(x: Tensor) -> Tensor:
        found = right(x)
        weight = kernel.weight()
        lost = overflow(kernel, x.int_repr().float(), weight.int_repr().float())
        scales = weight.q_per_channel_scales().float() * x.q_scale() / found.q_scale()
        shape = (1, -1, 1, 1) if found.dim() == 4 else (1, -1)
        steps = torch.round(lost * scales.reshape(shape)).int()
        return rebuilt(found.int_repr().int() - steps, found)

    kernel.forward = wrong


def overflow(kernel: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What is cut off when two products at a time are added in 16 bits."""
    if weight.dim() == 2:
        return _cut(x.unsqueeze(1) * weight).sum(-1)
    rows = F.unfold(x, kernel.kernel_size, kernel.dilation, kernel.padding, kernel.stride)
    taps = rows.unflatten(1, (weight.shape[1], -1)).transpose(1, 2).flatten(1, 2).transpose(1, 2)
    filters = weight.flatten(2).transpose(1, 2).flatten(1)
    lost = torch.stack([_cut(taps * one).sum(-1) for one in filters], 1)
    return lost.unflatten(2, (x.shape[2] // kernel.stride[0], -1))


def _cut(products: Tensor) -> Tensor:
    even = F.pad(products, (0, products.shape[-1] % 2)).unflatten(-1, (-1, 2)).sum(-1)
    return even - even.clamp(-32768, 32767)


# The cases --------------------------------------------------------------------------------------------------


def cases(architectures: Iterable[str] = tuple(ARCHITECTURES)) -> list[Case]:
    """All of them, on each architecture."""
    return [case for architecture in architectures for case in _cases(architecture)]


def _cases(a: str) -> Iterator[Case]:
    def net(**options: Any) -> Callable[[], nn.Module]:
        return lambda: trained(a, **options)

    per_tensor = Recipe(engine="x86")
    min_max = PER_CHANNEL.with_activations(observer="min_max")
    insensitive = "data-insensitive"
    plain, dim = net(), net(dim=True)
    yield Case(HEALTHY, a, (), HEALTHY, plain, recoverable=False)
    yield Case("healthy, min-max", a, (), HEALTHY, plain, recipe=min_max, recoverable=False)
    yield Case(
        "skewed channels, per-tensor",
        a,
        ("per-tensor weights",),
        insensitive,
        lambda: changed(plain(), skewed),
        recipe=per_tensor,
    )
    yield Case(
        "3% outliers in calibration",
        a,
        ("outliers among calibration samples", "outliers in activation ranges"),
        insensitive,
        plain,
        lambda found: {**found, "calibration": outliers(found["calibration"], 0.03)},
        min_max,
    )
    yield Case(
        "3% outliers that calibration lacks",
        a,
        ("outliers that calibration has not seen",),
        "data-sensitive",
        net(raised=True),
        lambda found: found | {name: raised(found[name]) for name in ("validation", "training")},
    )
    yield Case(
        "calibration of one class",
        a,
        ("classes without calibration samples",),
        None,
        dim,
        of_one_class,
        dim=True,
    )
    yield Case("too few samples", a, ("too few calibration samples",), None, dim, few, dim=True)
    yield Case("duplicated samples", a, ("duplicated calibration samples",), None, dim, duplicated, dim=True)
    yield Case(
        "overlap with validation",
        a,
        ("calibration samples that occur in other splits",),
        HEALTHY,
        plain,
        overlapping,
        recoverable=False,
    )
    yield Case(
        "unfused BatchNorm",
        a,
        ("unfused BatchNorm",),
        insensitive,
        lambda: changed(trained(a, gap=nn.Dropout), unequal_norm),
    )
    yield Case(
        "input range varies by sample",
        a,
        ("input ranges that vary by sample",),
        None,
        net(tail="varying"),
    )
    yield Case(
        "wrong kernel",
        a,
        ("a kernel that differs from its reference",),
        "implementation",
        plain,
        backend=lambda: converting(wrong_kernel),
    )
    yield Case(
        "saturating accumulators",
        a,
        ("saturating accumulators",),
        "implementation",
        net(binary=True),
        twin=True,
        backend=lambda: converting(saturating_kernel),
    )
    yield Case(
        "NaN",
        a,
        ("outputs that are not finite",),
        "not finite",
        lambda: changed(trained(a, tail="ratio"), wide_gate),
    )
