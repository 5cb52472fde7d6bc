"""A healthy network of a few layers, its twins with one planted fault each, and how to run stages on them."""

import copy
from functools import cache
from typing import ClassVar

import torch
from memory import Memory
from tiny import CLASSES, samples
from torch import nn

from qtrack import Task
from qtrack.campaign import run_plan
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import Recipe
from qtrack.statistics import paired_drop

NOISE = 2.0
"""That much more of it than tiny has, so that some samples are hard."""
BITS_OF_THE_HEAD = 3


def batches(count, seed, size=64):
    images, labels = samples(count, seed)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed + 1000))
    images = (images + NOISE * noise) / (1 + NOISE)
    return list(zip(images.split(size), labels.split(size), strict=True))


class Net(nn.Module):
    """Two convolutions with BatchNorm, before the second one a Dropout, and a head."""

    def __init__(self, size=3, groups=1, offset=0.0):
        super().__init__()
        self.first = nn.Conv2d(1, 8, size, padding=size // 2)
        self.first_bn = nn.BatchNorm2d(8)
        nn.init.constant_(self.first_bn.bias, offset)
        self.first_relu = nn.ReLU()
        self.second = nn.Conv2d(8, 8, size, padding=size // 2, groups=groups)
        if groups > 1:
            nn.init.constant_(self.second.weight, 1 / size**2).requires_grad_(False)
        self.drop = nn.Dropout(0.1)
        self.second_bn = nn.BatchNorm2d(8)
        self.second_relu = nn.ReLU()
        self.pool = nn.AvgPool2d(2) if size > 1 else nn.Identity()
        self.head = nn.Linear(72 if size > 1 else 288, CLASSES)

    def forward(self, x):
        x = self.first_relu(self.first_bn(self.first(x)))
        x = self.second_relu(self.second_bn(self.drop(self.second(x))))
        return self.head(self.pool(x).flatten(1))


@cache
def trained(**shape):
    torch.manual_seed(0)
    net = Net(**shape)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(5):
        for images, labels in batches(1024, 1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return net.eval()


class Healthy(Task):
    name = "healthy"
    shape: ClassVar = {}

    def model(self):
        net = copy.deepcopy(trained(**self.shape))
        with torch.no_grad():
            self.plant(net)
        return net

    def plant(self, net):
        """Nothing."""

    def calibration(self):
        return batches(64, 2)

    def validation(self):
        return batches(400, 3, size=100)

    def training(self):
        return batches(128, 1)


SPREAD = 2 ** torch.linspace(-10, 10, 8)


class Seam(Healthy):
    """The channels between the convolutions have ranges far apart."""

    def plant(self, net):
        net.first_bn.weight *= SPREAD
        net.first_bn.bias *= SPREAD
        net.second.weight /= SPREAD.view(1, -1, 1, 1)


class Unfused(Healthy):
    """So have those that BatchNorm evens out, which torch.ao does not fuse for the Dropout before it."""

    def plant(self, net):
        net.second.weight *= SPREAD.view(-1, 1, 1, 1)
        net.second.bias *= SPREAD
        net.second_bn.running_mean *= SPREAD
        net.second_bn.running_var *= SPREAD**2
        net.second_bn.eps = 0.0


class Shifted(Healthy):
    """The head's weights lie just short of half a step off the grid, up for two classes, down for two."""

    def plant(self, net):
        features = torch.cat([nn.Sequential(*list(net.children())[:-1])(x) for x, _ in self.calibration()])
        weight, bias = net.head.weight, net.head.bias
        step = weight.abs().max() / (2**BITS_OF_THE_HEAD - 1) * 2
        grid = (weight / step).round() * step
        off = 0.45 * step * torch.tensor([1.0, 1.0, -1.0, -1.0]).view(-1, 1) * (weight.abs() < 3 * step)
        bias -= off @ features.flatten(1).mean(0)
        weight.copy_(torch.where(weight.abs() < 3 * step, grid + off, weight))


class Dim(Healthy):
    """The first calibration samples are nearly blank."""

    def calibration(self):
        (images, labels), *others = batches(64, 2)
        return [(torch.cat([0.15 * images[:4], images[4:]]), labels), *others]


class Spiked(Healthy):
    """One calibration sample has one huge value; no layer carries it to other places."""

    shape: ClassVar = {"size": 1}

    def calibration(self):
        found = batches(1024, 2)
        found[3][0][5, 0, 3, 3] = 300.0
        return found


class Depthwise(Healthy):
    """A depthwise convolution of large numbers, all positive."""

    shape: ClassVar = {"groups": 8, "offset": 12.0}


def outcomes(task, *stages, recipe=None):
    """By the stages' names."""
    memory = Memory()
    pipeline = Pipeline(
        name="p", task="t:T", recipe=recipe or Recipe(engine="x86"), stages=["float", *stages]
    )
    run_plan(plan_of(pipeline, task), memory)
    return {name: kept.outcome.outcome for name, kept in memory.stages.items() if kept.outcome}


def lost(found, stage, before="ptq"):
    """What the stage loses against the one before it, with its interval."""
    return paired_drop(found[before].validation.scores, found[stage].validation.scores, 0.95)
