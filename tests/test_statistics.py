"""Paired intervals: worked out by hand, and checked by simulation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrack.statistics import Drop, flips_of, paired_drop, samples_needed, target_met, unpaired_drop


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


COUNTS = st.integers(0, 60)


@given(COUNTS, COUNTS, COUNTS, COUNTS, st.sampled_from([0.9, 0.95, 0.99]))
def test_flips_are_read_back_from_the_interval(both_right, lost, won, both_wrong, confidence):
    counts = pairs(both_right, lost, won, both_wrong + 3)
    assert flips_of(paired_drop(*counts, confidence)) == (lost, won)


def test_scores_that_are_no_hits_have_no_flips():
    rng = np.random.default_rng(0)
    assert flips_of(paired_drop(rng.normal(size=50), rng.normal(size=50))) is None


def times(counts, factor):
    return paired_drop(*pairs(*(count * factor for count in counts)))


@given(COUNTS, COUNTS, COUNTS, st.floats(0, 0.3))
def test_so_many_samples_clear_the_limit_and_fewer_do_not(both, lost, won, limit):
    drop = paired_drop(*pairs(both + 3, lost, won, 0))
    needed = samples_needed(drop, limit)
    if target_met(drop, limit) is not None:
        assert needed == drop.samples
    elif needed is not None and needed < 40 * drop.samples:
        factor = -(-needed // drop.samples)
        assert target_met(times((both + 3, lost, won, 0), factor), limit) is not None
        if factor > 1 and (factor - 1) * drop.samples < needed:
            assert target_met(times((both + 3, lost, won, 0), factor - 1), limit) is None


def test_no_number_of_samples_tells_a_drop_from_itself():
    assert samples_needed(paired_drop(*pairs(90, 10, 0, 0)), 0.10) is None
    assert samples_needed(Drop(0.1, -float("inf"), float("inf"), 0.95, 1), 0.2) is None


def test_scores_that_are_no_hits_need_samples_by_their_spread():
    rng = np.random.default_rng(3)
    drop = paired_drop(rng.normal(0.03, 1, 400), np.zeros(400))
    needed = samples_needed(drop, 0.25 + drop.value)
    assert samples_needed(drop, drop.value + 0.01) == pytest.approx((1.96 * 1 / 0.01) ** 2, rel=0.1)
    assert needed == 400  # it is clear already
    assert samples_needed(replace(drop, samples=1), drop.value + 0.01) is None


def test_with_the_samples_that_are_said_to_be_needed_about_half_of_all_trials_decide():
    rng = np.random.default_rng(2)
    cells, limit = (0.94, 0.02, 0.01, 0.03), 0.02
    drop = paired_drop(*pairs(*(round(700 * share) for share in cells)))
    assert target_met(drop, limit) is None
    needed = samples_needed(drop, limit)

    def decided(samples):
        trials = [paired_drop(*pairs(*rng.multinomial(samples, cells))) for _ in range(600)]
        return np.mean([target_met(trial, limit) is not None for trial in trials])

    assert 0.4 <= decided(needed) <= 0.6
    assert decided(needed // 3) < 0.3
    assert decided(4 * needed) > 0.95


@pytest.mark.parametrize(("first", "second"), [((0.9, 700), (0.85, 500)), ((0.99, 300), (0.99, 300))])
def test_the_unpaired_interval_covers_the_truth_as_often_as_it_says(first, second):
    rng = np.random.default_rng(4)
    truth = first[0] - second[0]
    drops = [
        unpaired_drop(*((rng.random(n) < share).astype(float) for share, n in (first, second)))
        for _ in range(2000)
    ]
    assert 0.93 <= np.mean([drop.low <= truth <= drop.high for drop in drops]) <= 0.99


def test_unpaired_scores_that_are_no_hits_get_welchs_interval():
    drop = unpaired_drop(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0, 8.0]))
    # variances 1/3 and 20/3/4, 4.07 degrees of freedom
    assert drop.value == pytest.approx(-3.0)
    assert drop.high - drop.value == pytest.approx(2.7596 * np.sqrt(1 / 3 + 5 / 3), abs=0.02)
    assert unpaired_drop(np.array([0.5]), np.array([0.7, 0.8])).high == float("inf")
    assert unpaired_drop(np.full(3, 0.5), np.full(3, 0.25)).low == 0.25
