"""Paired intervals: worked out by hand, and checked by simulation."""

import numpy as np
import pytest

from qtrack.statistics import paired_drop, target_met


def pairs(both_right, lost, won, both_wrong):
    baseline = np.repeat([1.0, 1.0, 0.0, 0.0], [both_right, lost, won, both_wrong])
    scores = np.repeat([1.0, 0.0, 1.0, 0.0], [both_right, lost, won, both_wrong])
    return baseline, scores


def test_drop_is_the_loss_of_accuracy():
    drop = paired_drop(*pairs(80, 15, 5, 0))
    assert drop.value == pytest.approx(0.10)
    # Agresti and Min: (15 - 5) / 102 -+ 1.96 * sqrt(21 - 100 / 102) / 102
    assert drop.low == pytest.approx(0.0980 - 0.0860, abs=1e-4)
    assert drop.high == pytest.approx(0.0980 + 0.0860, abs=1e-4)


def test_no_flip_at_all_is_still_not_certainty():
    drop = paired_drop(*pairs(500, 0, 0, 0))
    assert drop.value == 0
    assert 0 < drop.high < 0.01


def test_scores_that_are_no_hits_get_students_t():
    baseline = np.array([1.0, 2.0, 3.0, 4.0])
    drop = paired_drop(baseline, baseline - [0.1, 0.2, 0.3, 0.4])
    assert drop.value == pytest.approx(0.25)
    assert drop.high == pytest.approx(0.25 + 3.1824 * 0.129099 / 2, abs=1e-4)


def test_target_is_met_missed_or_not_sure():
    drop = paired_drop(*pairs(950, 30, 10, 10))
    assert target_met(drop, 0.05) is True
    assert target_met(drop, 0.001) is False
    assert target_met(drop, 0.02) is None


def test_other_samples_cannot_be_paired():
    with pytest.raises(ValueError, match="same samples"):
        paired_drop(np.ones(3), np.ones(4))


CELLS = [  # shares of samples: right under both, lost, won, wrong under both
    *((0.90, 0.03, 0.02, 0.05), (0.95, 0.02, 0.01, 0.02), (0.97, 0.01, 0.005, 0.015)),
    *((0.85, 0.08, 0.02, 0.05), (0.70, 0.20, 0.05, 0.05), (0.50, 0.25, 0.20, 0.05)),
]
PAIRS = 2000


def simulated(cells, samples):
    rng = np.random.default_rng(0)
    return [paired_drop(*pairs(*rng.multinomial(samples, cells))) for _ in range(PAIRS)]


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("samples", [600, 1500])
def test_an_interval_covers_the_truth_as_often_as_it_says(cells, samples):
    truth = cells[1] - cells[2]
    covered = np.mean([drop.low <= truth <= drop.high for drop in simulated(cells, samples)])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("samples", [50, 200, 1000])
def test_so_does_an_interval_of_scores_that_are_no_hits(samples):
    rng, found = np.random.default_rng(0), []
    for _ in range(PAIRS):
        baseline = rng.normal(0, 1, samples)
        found.append(paired_drop(baseline, baseline - rng.normal(0.1, 0.3, samples)))
    assert 0.93 <= np.mean([drop.low <= 0.1 <= drop.high for drop in found]) <= 0.97


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("samples", [200, 600, 1500])
def test_a_model_just_beyond_the_target_is_rarely_said_to_meet_it(cells, samples):
    target = cells[1] - cells[2] - 1e-4
    assert np.mean([target_met(drop, target) is True for drop in simulated(cells, samples)]) < 0.05
    assert np.mean([target_met(drop, target + 1e-4) is False for drop in simulated(cells, samples)]) < 0.05
