"""Price tables that one can reckon with by hand."""

from qtrack.recipe import Float, Static
from qtrack.search.prices import OUTSIDE, Flow, PricedLayer, PriceTable, Rung

FLOAT = {"a": 4.0, "b": 3.0, "c": 4.0}
NOISE = {"a": 0.01, "b": 0.1, "c": 0.02}


def layer(name):
    recipe = Rung("recipe", Static(), "int8", NOISE[name], 1.0, 100)
    return PricedLayer(name, "Conv2d", (recipe, Rung("float", Float(), "float32", 0.0, FLOAT[name], 400)))


def chain():
    """a > b > c; each conversion takes half a millisecond, and what else there is one."""
    flows = (
        Flow(OUTSIDE, ("a",), 0.5, 0.0),
        Flow("a", ("b",), 0.5, 0.5),
        Flow("b", ("c",), 0.5, 0.5),
        Flow("c", (OUTSIDE,), 0.5, 0.5),
    )
    return PriceTable(tuple(map(layer, "abc")), flows, 1.0, 10, 8, 1)
