"""The networks that come with qtrack, and the pipelines on them from end to end."""

from pathlib import Path

import pytest
import torch
from memory import Memory
from safetensors.torch import load_file

from qtrack.campaign import run_plan
from qtrack.pipeline import read_plan
from qtrack.task import load_module, load_task

PIPELINES = Path(__file__).parent.parent / "pipelines"
NETWORKS = {"digits": ("Digits", "DigitsNet"), "resnet": ("Resnet", "ResNet18")}


@pytest.mark.parametrize("name", NETWORKS)
def test_planted_trouble_leaves_the_float_network_as_it_was_trained(name):
    task, network = NETWORKS[name]
    planted = load_task(f"{name}.py:{task}", PIPELINES)
    trained = getattr(load_module(f"{name}.py", PIPELINES, "task"), network)()
    trained.load_state_dict(load_file(PIPELINES / f"{name}.safetensors"))
    images, _ = next(iter(planted.validation()))
    with torch.no_grad():
        torch.testing.assert_close(
            planted.model().eval()(images), trained.eval()(images), rtol=1e-4, atol=1e-4
        )


def test_the_resnet_has_the_splits_of_digits():
    digits, resnet = (load_task(f"{name}.py:{NETWORKS[name][0]}", PIPELINES) for name in NETWORKS)
    for ours, theirs in zip(digits.validation(), resnet.validation(), strict=True):
        assert torch.equal(ours[0], theirs[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_shipped_pipeline_mends_what_was_planted(name):
    memory = Memory()
    run_plan(read_plan(PIPELINES / f"{name}.yaml"), memory)
    value = {stage: kept.outcome.outcome.value for stage, kept in memory.stages.items()}
    assert value["float"] > 0.98
    assert value["float"] - value["ptq"] > 0.3
    assert value["ptq"] + 0.2 < value["per_channel"] < min(value["qat"], value["fallback"])
    assert value["float"] - value["qat"] < 0.02
    assert memory.stages["qat"].outcome.judged.meets_target is not False  # sure of it on most processors


@pytest.mark.slow
def test_a_search_of_fifteen_trials_mends_what_was_planted():
    memory = Memory()
    run_plan(read_plan(PIPELINES / "search.yaml"), memory)
    results = {result.name: result for result in memory.results}
    assert results["search"].outcome.value > results["ptq"].outcome.value + 0.5
    assert results["search"].searched.evaluations < 15  # the first trial is known
    assert results["search"].judged.meets_target
    assert results["small"].judged.meets_target
    assert results["small"].outcome.size_bytes < results["search"].outcome.size_bytes
    assert results["small"].outcome.size_bytes < results["small.2"].outcome.size_bytes
    assert results["small"].outcome.value < results["small.2"].outcome.value
