"""The narrowing down to a cheap set of layers, on sets alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrack.search.fewest import LOOKS, Cheapest, most_evaluations
from qtrack.search.rejection import SUSPECTS, may_meet, suspects
from qtrack.statistics import stricter


def cheapest(costs, meets, most=100):
    asked = []

    def ask(layers, strictly):
        asked.append((layers, strictly))
        return meets(layers)

    return Cheapest(costs, ask, lambda: len(asked) >= most), asked


@given(st.sets(st.integers(0, 30), max_size=31), st.integers(1, 31))
def test_bisection_ends_at_a_crossing_however_the_metric_goes(counts, layers):
    names = [f"l{i}" for i in range(layers)]
    found, asked = cheapest(dict.fromkeys(names, 1.0), lambda one: len(one) in counts)
    found.bisect(names)
    met = [len(one) for one, _ in asked if len(one) in counts]
    assert (len(found.found) if found.found else None) == (min(met) if met else None)
    assert len(asked) <= layers.bit_length()
    if met and min(met) > 1:
        assert min(met) - 1 in {len(one) for one, _ in asked} - counts


def test_giving_back_looks_at_so_many_sets_and_strictly():
    names = [f"l{i}" for i in range(12)]
    found, asked = cheapest(dict.fromkeys(names, 1.0), lambda one: True)
    found.found = frozenset(names)
    found.give_back(lambda layers: [layers - {name} for name in sorted(layers)])
    assert (len(found.found), len(asked)) == (12 - LOOKS, LOOKS)
    assert all(strictly for _, strictly in asked)


def test_giving_back_ends_where_nothing_cheaper_does():
    found, asked = cheapest({"a": 1.0, "b": 2.0}, lambda one: False)
    found.found = frozenset({"a", "b"})
    found.give_back(lambda layers: [frozenset({"b"}), frozenset({"a"})])
    assert found.found == {"a", "b"}
    assert [one for one, _ in asked] == [{"b"}, {"a"}]


def test_a_search_without_a_find_has_nothing_to_give_back():
    found, asked = cheapest({"a": 1.0}, lambda one: True)
    found.give_back(lambda layers: [frozenset()])
    assert asked == []


@pytest.mark.parametrize(("layers", "most"), [(1, 3), (2, 4), (16, 7), (17, 8), (200, 11)])
def test_the_most_evaluations_are_known(layers, most):
    assert most_evaluations(layers) == most


def test_looks_share_the_error_that_one_may_make():
    assert 1 - stricter(0.95, LOOKS) == pytest.approx(0.05 / LOOKS)


def test_the_samples_that_lost_most_are_the_suspects():
    floating = np.ones(400)
    once, twice = np.ones(400), np.ones(400)
    once[:300] = 0
    twice[290:310] = 0
    found = suspects(floating, [once, twice])
    assert len(found) == SUSPECTS
    assert set(range(290, 300)) <= set(found)
    assert max(found) < 310


def test_a_candidate_is_rejected_on_its_suspects_alone():
    floating, before = np.ones(1000), np.ones(1000)
    before[:100] = 0

    def hopeful(lost):
        return may_meet(
            lambda at: np.where(np.array(at) < lost, 0.0, 1.0),
            floating,
            [before],
            max_drop=0.03,
            confidence=0.95,
        )

    assert hopeful(10)
    assert not hopeful(40)


def test_few_suspects_say_nothing():
    floating, before = np.ones(1000), np.ones(1000)
    before[:3] = 0
    assert may_meet(lambda at: np.zeros(len(at)), floating, [before], max_drop=0.0, confidence=0.95)
