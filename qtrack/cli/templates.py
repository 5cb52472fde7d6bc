"""What ``qtrack init`` writes; NAME and CLASS are filled in."""

TASK = '''"""The task of NAME.yaml: a trained float model with its data."""

from collections import OrderedDict
from copy import deepcopy
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn

import qtrack


@cache
def batches(first, last):
    """Your data here: lists of batches, or a DataLoader per split; no sample may stand in two splits."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16).float().unsqueeze(1), torch.tensor(digits.target)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return [(images[rows], labels[rows]) for rows in shuffled[first:last].split(64)]


@cache
def trained():
    """Your trained model here, with torch.load("model.pt", weights_only=True) for its weights."""
    torch.manual_seed(0)
    conv1, conv2 = nn.Conv2d(1, 16, 3, bias=False), nn.Conv2d(16, 32, 3, stride=2, bias=False)
    first = OrderedDict(conv1=conv1, bn1=nn.BatchNorm2d(16), relu1=nn.ReLU())
    second = OrderedDict(conv2=conv2, bn2=nn.BatchNorm2d(32), relu2=nn.ReLU())
    net = nn.Sequential(first | second | OrderedDict(flatten=nn.Flatten(), head=nn.Linear(128, 10)))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for images, labels in batches(0, 797) * 15:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval()


class CLASS(qtrack.Task):
    name = "NAME"  # the MLflow experiment

    def model(self):  # fresh at each call
        return deepcopy(trained())

    def calibration(self):  # observers see this
        return batches(797, 957)

    def validation(self):  # decisions are taken on this: the more samples, the surer
        return batches(957, 1557)

    def test(self):  # optional: seen by no decision
        return batches(1557, 1797)

    def training(self):  # optional, for QAT
        return batches(0, 797)

    def loss(self, output, batch):  # optional, for QAT
        return nn.functional.cross_entropy(output, batch[1])
'''

PIPELINE = """\
# qtrack run NAME.yaml
name: NAME
task: NAME.py:CLASS              # beside this file, or package.module:Class

target:
  max_drop: 0.02                 # of the metric, against the float model
  confidence: 0.95               # and how sure that must be

recipe:                          # where the first stage starts
  backend: fx
  seed: 0

stages:                          # in order; each starts from the one before
  - float                        # the baseline
  - ptq                          # int8 after calibration, one scale per tensor
  - per_channel                  # a scale for each output channel of the weights
  # - qat: {epochs: 4}           # train with fake quantization; needs training() and loss()
  - fallback                     # the worst layers back to float, until the target is met

until: all                       # or: target, to stop at the first stage that meets it
"""
