"""Findings and diagnoses as plain data."""

import json
import math

import pytest
from diagnosis_samples import BAD

from qtrack.errors import StoreError
from qtrack.finding import Remedy, Worked, diagnosis_from


def test_a_diagnosis_survives_json():
    assert diagnosis_from(json.loads(json.dumps(BAD.to_dict()))) == BAD


def test_it_names_the_first_fault_as_the_cause():
    assert BAD.cause == "per-tensor weights"
    assert BAD.to_dict()["cause"] == "per-tensor weights"


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
    data = BAD.to_dict() | damage if damage else {"version": 1}
    with pytest.raises(StoreError, match="not a recorded diagnosis"):
        diagnosis_from(data)


def test_what_json_cannot_hold_is_read_as_no_number():
    data = BAD.to_dict()
    data |= {"value": None, "drop": data["drop"] | {"high": None}}
    found = diagnosis_from(data)
    assert math.isnan(found.value)
    assert math.isnan(found.drop.high)
    assert found.drop.low == BAD.drop.low
