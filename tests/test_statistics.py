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


@pytest.mark.parametrize(
    "cells", [(0.90, 0.03, 0.02, 0.05), (0.97, 0.01, 0.005, 0.015), (0.70, 0.2, 0.05, 0.05)]
)
def test_interval_covers_the_truth_as_often_as_it_says(cells):
    rng = np.random.default_rng(0)
    truth = cells[1] - cells[2]
    drops = [paired_drop(*pairs(*rng.multinomial(600, cells))) for _ in range(2000)]
    covered = np.mean([drop.low <= truth <= drop.high for drop in drops])
    assert 0.93 <= covered <= 0.975


def test_a_model_at_the_limit_is_rarely_called_good():
    rng = np.random.default_rng(1)
    drops = [paired_drop(*pairs(*rng.multinomial(700, (0.92, 0.03, 0.01, 0.04)))) for _ in range(2000)]
    assert np.mean([target_met(drop, 0.0199) is True for drop in drops]) < 0.05
