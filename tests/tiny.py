"""A network and data small enough that a whole campaign takes a second or two."""

from functools import cache

import torch
from torch import Tensor, nn

from qtrack import Task

CLASSES = 4


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.relu(self.bn(self.conv(x)))


class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.block = Residual(8)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(8 * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.block(self.relu(self.stem(x)))).flatten(1))


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of one random 6x6 pattern per class."""
    patterns = torch.randn(CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    return patterns[labels] + 0.9 * torch.randn(count, 1, 6, 6, generator=generator), labels


def batches(count: int, seed: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    images, labels = samples(count, seed)
    return list(zip(images.split(size), labels.split(size), strict=True))


@cache
def trained() -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = TinyNet()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(5):
        for images, labels in batches(256, 1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


class Tiny(Task):
    name = "tiny"

    def model(self):
        net = TinyNet()
        net.load_state_dict(trained())
        return net.eval()

    def calibration(self):
        return batches(64, 2)

    def validation(self):
        return batches(200, 3)

    def test(self):
        return batches(100, 4)

    def training(self):
        images, labels = samples(128, 1)
        order = torch.randperm(len(labels))
        return zip(images[order].split(16), labels[order].split(16), strict=True)

    def loss(self, output, batch):
        return nn.functional.cross_entropy(output, batch[1])


class WithoutTraining(Tiny):
    training = Task.training
    loss = Task.loss
