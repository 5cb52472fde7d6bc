"""Price tables and the choice among rungs, on numbers worked out by hand."""

from __future__ import annotations

import pytest
from prices_made import chain

from qtrack.errors import RecipeError
from qtrack.recipe import Float, Override, Recipe, Static
from qtrack.search.assignment import cheapest, front, least_noise, most_precise
from qtrack.search.prices import OUTSIDE, Flow, PricedLayer, PriceTable, Rung


def floats(choice):
    return "".join(name for name, rung in choice.items() if rung == "float")


# prices


def test_an_island_pays_for_two_conversions():
    table = chain()
    assert table.predicted_ms({}) == 1 + 3 + 0.5 + 0.5
    assert table.predicted_ms({"b": "float"}) == table.predicted_ms({}) + 2 + 0.5 + 0.5


def test_neighbours_share_theirs_and_the_ends_need_none():
    table = chain()
    assert table.predicted_ms({"a": "float", "b": "float"}) == 1 + (4 + 3 + 1) + 0.5 + 0.5
    everything = dict.fromkeys("abc", "float")
    assert table.predicted_ms(everything) == 1 + 11
    assert not list(table.conversions(everything))


def test_a_tensor_is_converted_once_however_many_read_it():
    table = PriceTable(chain().layers, (Flow("a", ("b", "c", OUTSIDE), 0.5, 0.25),), 0.0, 0, 8, 1)
    (flow,) = table.flows
    assert list(table.conversions({})) == [(flow, "dequantize", 0.25)]
    assert list(table.conversions({"b": "float"})) == [(flow, "dequantize", 0.25)]
    assert list(table.conversions({"a": "float"})) == [(flow, "quantize", 0.5)]


def test_bytes_and_noise_add_up():
    table = chain()
    assert table.predicted_bytes({"b": "float"}) == 10 + 600
    assert table.noise({"b": "float"}) == pytest.approx(0.03)
    assert table.noise({}, {"b": 0.0, "c": 10.0}) == pytest.approx(0.21)


# the choice


def test_the_worst_layer_that_the_budget_pays_for_goes_to_float():
    table = chain()
    assert floats(least_noise(table, "latency", 7.9)) == ""
    assert floats(least_noise(table, "latency", 8.0)) == "b"
    assert floats(least_noise(table, "latency", 9.9)) == "b"  # with c as well: 10


def test_with_shared_conversions_a_neighbour_is_the_next():
    assert (
        floats(least_noise(chain(), "latency", 10.0)) == "bc"
    )  # c adds 3, and the last conversion falls away
    assert floats(least_noise(chain(), "latency", 12.0)) == "abc"


def test_the_size_is_a_budget_too():
    assert floats(least_noise(chain(), "size", 900)) == "b"
    assert floats(least_noise(chain(), "size", 910)) == "bc"


def test_weights_say_whose_noise_matters():
    assert floats(least_noise(chain(), "size", 610, {"a": 100.0})) == "a"


def test_the_reverse_is_the_cheapest_within_a_noise():
    table = chain()
    assert floats(cheapest(table, "latency")) == ""
    assert floats(cheapest(table, "latency", 0.03)) == "b"
    assert floats(cheapest(table, "latency", 0.025)) == "bc"
    assert floats(most_precise(table)) == "abc"


def test_the_front_runs_from_the_cheapest_to_the_most_precise():
    assert [floats(choice) for choice in front(chain(), "latency", 15)] == ["", "b", "bc", "abc"]


def test_of_equally_precise_choices_the_cheaper_is_taken():
    quiet = Rung("recipe", Static(), "int8", 0.0, 1.0, 100)
    layers = (PricedLayer("a", "Conv2d", (quiet, Rung("float", Float(), "float32", 0.0, 4.0, 400))),)
    table = PriceTable(layers, (), 0.0, 0, 8, 1)
    assert floats(least_noise(table, "latency", 100.0)) == ""
    assert front(table, "latency", 7) == [{"a": "recipe"}]


@pytest.mark.parametrize(("cost", "budget", "least"), [("latency", 4.9, "5 ms"), ("size", 300, "0.31 kB")])
def test_an_impossible_budget_names_the_least_that_there_is(cost, budget, least):
    with pytest.raises(RecipeError, match=f"costs so little: .* asked, the least is {least}"):
        least_noise(chain(), cost, budget)


def test_so_does_an_impossible_noise():
    quietest = Rung("recipe", Static(), "int8", 0.5, 1.0, 100)
    table = PriceTable((PricedLayer("a", "Conv2d", (quietest,)),), (), 0.0, 0, 8, 1)
    with pytest.raises(RecipeError, match=r"so little noise: 0.1 asked, the least is 0.5"):
        cheapest(table, "latency", 0.1)


# plain data


def test_a_choice_becomes_a_recipe_and_is_read_from_it_again():
    table = chain()
    start = Recipe(overrides=(Override(layer="b", scheme=Static()), Override(type="Linear", scheme=Float())))
    choice = {"a": "recipe", "b": "float", "c": "recipe"}
    recipe = table.recipe(start, choice)
    assert recipe.overrides == (start.overrides[1], Override(layer="b", scheme=Float()))
    assert table.chosen(recipe) == choice


def test_a_row_for_each_rung_and_conversion_with_what_was_chosen():
    rows = chain().rows({"b": "float"})
    chosen = [(row["layer"], row["rung"]) for row in rows if row["chosen"]]
    layers = [("a", "recipe"), ("b", "float"), ("c", "recipe")]
    conversions = [("float > a", "quantize"), ("a > b", "dequantize"), ("b > c", "quantize")]
    assert chosen == [*layers, *conversions, ("c > float", "dequantize"), ("rest", "rest")]
    assert len(rows) == 6 + 6 + 1
    assert sum(row["milliseconds"] for row in rows if row["chosen"]) == chain().predicted_ms({"b": "float"})
    assert sum(row["bytes"] for row in rows if row["chosen"]) == chain().predicted_bytes({"b": "float"})
    assert (rows[2]["sqnr_db"], rows[3]["sqnr_db"]) == (10.0, None)
