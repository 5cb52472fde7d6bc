"""Results made up by hand, so that the ledger is tested without quantizing anything."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

from qtrack import Task
from qtrack.data import SplitInfo
from qtrack.outcome import Cost, Evaluation, Latency, LayerRow, Outcome
from qtrack.pipeline import Pipeline, StageSpec, plan_of
from qtrack.recipe import Recipe
from qtrack.records import Setting, StageResult
from qtrack.stages import Target, judge

FLOAT = Recipe(engine="x86").with_mode("float")
PTQ = Recipe(engine="x86")
STAGES = ("float", "ptq", "per_channel")


class Lines(Task):
    """A linear model with fixed weights."""

    name = "lines"

    def model(self):
        model = nn.Linear(3, 2)
        with torch.no_grad():
            model.weight.copy_(torch.arange(6.0).reshape(2, 3))
            model.bias.zero_()
        return model.eval()

    def calibration(self):
        return [(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))]

    validation = calibration


def setting(name="lines", stages=STAGES, task=None, source="name: lines\n", **fields):
    splits = {split: split_info(split) for split in ("calibration", "validation")}
    plan = plan_of(Pipeline(name=name, task="lines.py:Lines", stages=stages, **fields), task or Lines())
    plan = type(plan)(plan.pipeline, plan.task, plan.stages, source, plan.folder)
    return Setting(plan, splits, {"python": "3.11", "git": {"commit": "c0ffee" * 6, "dirty": True}})


def split_info(name, samples=4):
    digest = hashlib.sha256(name.encode()).hexdigest()
    return SplitInfo(name, samples, 1, samples, digest, (digest,) * samples, {0: 2, 1: 2})


def rows(count=4, **changes):
    return tuple(
        LayerRow(
            i,
            f"block.{i}",
            "Conv2d",
            "int8",
            params=100,
            macs=1000,
            **{"sqnr_db": 30.0 - i, "own_sqnr_db": 40.0 - i, "weight_sqnr_db": 45.0, "cosine": 0.99}
            | changes,
        )
        for i in range(count)
    )


def evaluation(scores, **fields):
    scores = np.array(scores, float)
    labels = np.arange(len(scores)) % 2
    return Evaluation(scores, labels, np.where(scores > 0, labels, 1 - labels), "digest of outputs", **fields)


def outcome(recipe=FLOAT, scores=(1, 1, 1, 0), layers=None, **fields):
    return Outcome(
        recipe=recipe,
        build=Lines().model,
        example=(torch.ones(4, 3),),
        metric="accuracy",
        validation=fields.pop("validation", evaluation(scores)),
        cost=Cost(1.5, {"evaluate": 0.5, "compare": 1.0}, 100, 1),
        size_bytes=1112,
        test=fields.pop("test", evaluation([1, 0])),
        latency=Latency(2.0, 0.1, 3.0, 4, 1, 50),
        layers=rows() if layers is None else layers,
        **{
            "sqnr_db": 33.0,
            "float_layers": ("head",),
            "qparams": {"block.0": {"scale": [0.5], "zero_point": [3]}},
            "digests": {"parameters": "p" * 64, "behaviour": "b" * 64, "float_weights": "f" * 64},
        }
        | fields,
    )


def result(name="ptq", index=1, made=None, baseline=None, probes=(), target=None):
    baseline = baseline or outcome()
    target = target or Target()
    judged = [judge(each, baseline, target) for each in (made or outcome(), *probes)]
    return StageResult(name, index, judged[0], baseline, tuple(judged[1:]))


def record(ledger, made_setting=None, results=None):
    """Record a whole campaign; the campaign's id."""
    made_setting = made_setting or setting()
    with ledger.campaign(made_setting) as campaign:
        done = []
        for index, spec in enumerate(made_setting.plan.pipeline.stages):
            with campaign.stage(spec, index) as stage:
                stage.recipe(FLOAT, None)
                done.append((results or {}).get(spec.name) or result(spec.name, index))
                stage.result(done[-1])
        campaign.summary(done)
    return campaign.id


def spec(name):
    return StageSpec(use=name, name=name)
