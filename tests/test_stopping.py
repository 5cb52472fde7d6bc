"""An execution that measures more than its metric, or less than all of it."""

import numpy as np
import pytest
from tiny import Tiny

from qtrack.engine import execute
from qtrack.outcome import Stopped
from qtrack.recipe import Recipe

RECIPE = Recipe(engine="x86")


def stopped(until):
    with pytest.raises(Stopped) as raised:
        execute(Tiny(), RECIPE, thorough=False, until=until)
    return raised.value


def test_an_evaluation_ends_where_it_is_said_to():
    found = stopped(lambda scores: len(scores) >= 40)
    assert len(found.scores) == 48  # the third batch of 16
    assert str(found) == "stopped after 48 samples"


def test_the_scores_until_then_are_those_of_the_whole_evaluation():
    whole = execute(Tiny(), RECIPE, thorough=False).validation.scores
    np.testing.assert_array_equal(stopped(lambda scores: len(scores) >= 64).scores, whole[:64])


def test_what_was_stopped_has_cost_what_it_did_and_no_evaluation():
    whole = execute(Tiny(), RECIPE, thorough=False).cost
    cost = stopped(lambda scores: True).cost
    assert cost.evaluations == 0
    assert whole.forward_samples - cost.forward_samples == 200 - 16
    assert set(cost.phases) == set(whole.phases)


def test_latency_is_measured_for_a_search_where_it_asks_for_that():
    timed, not_timed = (execute(Tiny(), RECIPE, thorough=False, timed=timed) for timed in (True, False))
    assert timed.latency.float_median_ms > 0
    assert not_timed.latency is None
    assert timed.test is None
    assert "compare" not in timed.cost.phases
