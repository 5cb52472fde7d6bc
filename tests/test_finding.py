"""Findings and diagnoses as plain data."""

import json
import math

import pytest

from qtrack.errors import StoreError
from qtrack.finding import Diagnosis, Figure, Finding, Legs, Remedy, Worked, diagnosis_from
from qtrack.recipe import Recipe
from qtrack.statistics import Drop


def diagnosis() -> Diagnosis:
    remedy = Remedy(
        "per_channel", gain=0.8, why="weights", recipe=Recipe().with_weights(granularity="per_channel")
    )
    search = Remedy("fallback", {"max_layers": 3}, gain=0.9, cost=5.0, worked=Worked(2, 3))
    fault = Finding(
        "per-channel",
        "fault",
        "one scale does not serve all channels",
        cause="per-tensor weights",
        figures=(Figure("channel spread", 130.0),),
        threshold="10 dB",
        confidence=0.9,
        layers=("stem",),
        remedies=(remedy,),
    )
    return Diagnosis(
        subject="ptq",
        category="data-insensitive",
        text="most samples lost",
        metric="accuracy",
        float_value=0.98,
        value=0.4,
        drop=Drop(0.58, 0.5, 0.6, 0.95, 720),
        legs=Legs(0.5, 0.9, 0.4),
        findings=(fault, Finding("fusion", "fine", "all pairs are fused")),
        remedies=(remedy, search),
        seconds=1.5,
        forward_samples=4000,
        recipe_digest="ab",
    )


def test_a_diagnosis_survives_json():
    assert diagnosis_from(json.loads(json.dumps(diagnosis().to_dict()))) == diagnosis()


def test_it_names_the_first_fault_as_the_cause():
    assert diagnosis().cause == "per-tensor weights"
    assert diagnosis().to_dict()["cause"] == "per-tensor weights"


def test_what_worked_earlier_moves_the_worth_of_a_remedy():
    search = Remedy("fallback", gain=0.9, cost=5.0, worked=Worked(2, 3))
    assert search.worth == pytest.approx((2 * 0.9 + 2) / 5 / 5.0)


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"findings": 3},
        {"drop": {"value": 1}},
        {"text": 5},
        {"category": "well"},
        {
            "findings": [
                {"check": "x", "severity": "fault", "text": "x", "figures": [{"name": 1, "value": {}}]}
            ]
        },
        {"remedies": [{"stage": "x", "gain": "much"}]},
        {"remedies": [{"stage": "x", "recipe": {"backend": "none"}}]},
    ],
)
def test_what_is_no_diagnosis_is_refused(damage):
    data = diagnosis().to_dict() | damage if damage else {"version": 1}
    with pytest.raises(StoreError, match="not a recorded diagnosis"):
        diagnosis_from(data)


def test_what_json_cannot_hold_is_read_as_no_number():
    data = diagnosis().to_dict()
    data |= {"value": None, "drop": data["drop"] | {"high": None}}
    found = diagnosis_from(data)
    assert math.isnan(found.value)
    assert math.isnan(found.drop.high)
    assert found.drop.low == 0.5
