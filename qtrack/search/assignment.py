"""The best rung for each layer, by integer programming on a price table.

One binary variable says whether a layer stands on a rung. Whether a tensor is converted follows from them: it
is quantized at least as often as its producer is in float and a consumer is not, and the reverse. Another
budget is another run of the solver, which takes milliseconds, and no other measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qtrack.errors import RecipeError
from qtrack.search.prices import OUTSIDE, PriceTable

Cost = Literal["latency", "size"]
SLACK = 1e-7
"""Share by which the first aim may be missed for the second: that of equally good choices, the cheapest."""
LEAST = 1e-9
"""Noise below this share of the loudest choice's counts as none."""
Vector = NDArray[np.float64]


def least_noise(
    table: PriceTable, cost: Cost, budget: float, weights: Mapping[str, float] | None = None
) -> dict[str, str]:
    """The choice with the least noise among those that cost no more: milliseconds, or bytes.

    Raises RecipeError with the least that can be reached where none costs so little.
    """
    problem = _Problem(table, weights or {})
    expense, fixed = problem.expense(cost)
    found = problem.solved(problem.noise, expense, budget - fixed)
    if found is None:
        least = spent(table, cost, cheapest(table, cost))
        asked, least_said = _said(cost, budget), _said(cost, least)
        raise RecipeError(f"no choice of rungs costs so little: {asked} asked, the least is {least_said}")
    return found


def cheapest(
    table: PriceTable, cost: Cost, noise: float | None = None, weights: Mapping[str, float] | None = None
) -> dict[str, str]:
    """The choice that costs least among those with no more noise, whatever it is where that is None.

    Raises RecipeError with the least noise that can be reached where none has so little.
    """
    problem = _Problem(table, weights or {})
    found = problem.solved(problem.expense(cost)[0], problem.noise, noise)
    if found is None:
        least = table.noise(most_precise(table, weights), weights)
        raise RecipeError(f"no choice of rungs has so little noise: {noise:g} asked, the least is {least:g}")
    return found


def most_precise(table: PriceTable, weights: Mapping[str, float] | None = None) -> dict[str, str]:
    """Each layer on its most precise rung, at the least latency."""
    problem = _Problem(table, weights or {})
    found = problem.solved(problem.noise, problem.expense("latency")[0], None)
    assert found is not None
    return found


def front(
    table: PriceTable, cost: Cost, points: int, weights: Mapping[str, float] | None = None
) -> list[dict[str, str]]:
    """So many choices at most, from the cheapest to the most precise, each the cheapest of its noise.

    Budgets of noise are spaced evenly in decibels; choices that come twice are there once.
    """
    loudest = table.noise(cheapest(table, cost), weights)
    known = (rung.noise for layer in table.layers for rung in layer.rungs)
    quietest = max(min((noise for noise in known if noise > 0), default=0.0), loudest * LEAST)
    final = table.noise(most_precise(table, weights), weights)
    if loudest <= final or quietest <= 0:
        return [cheapest(table, cost, loudest, weights)]
    budgets = np.geomspace(loudest, min(quietest, loudest), points - 1)
    found: list[dict[str, str]] = []
    for budget in [*(float(one) for one in budgets if one > final), final]:
        choice = cheapest(table, cost, budget, weights)
        if not found or spent(table, cost, choice) > spent(table, cost, found[-1]):
            found.append(choice)
    return found


def spent(table: PriceTable, cost: Cost, choice: Mapping[str, str]) -> float:
    """Milliseconds or bytes that a choice costs."""
    return table.predicted_ms(choice) if cost == "latency" else float(table.predicted_bytes(choice))


class _Problem:
    """Variables: a layer on a rung (binary), then whether a tensor is quantized, and dequantized."""

    def __init__(self, table: PriceTable, weights: Mapping[str, float]) -> None:
        self.table = table
        self.places = [(layer.layer, rung) for layer in table.layers for rung in layer.rungs]
        self.size = len(self.places) + 2 * len(table.flows)
        self.noise = self._of_places([weights.get(name, 1.0) * rung.noise for name, rung in self.places])
        self.in_float = {
            layer.layer: self._of_places(
                [name == layer.layer and rung.in_float for name, rung in self.places]
            )
            for layer in table.layers
        }

    def expense(self, cost: Cost) -> tuple[Vector, float]:
        """What each variable costs, and what is spent whatever they are."""
        if cost == "size":
            return self._of_places([rung.bytes for _, rung in self.places]), self.table.rest_bytes
        conversions = [ms for flow in self.table.flows for ms in (flow.quantize_ms, flow.dequantize_ms)]
        times = self._of_places([rung.milliseconds for _, rung in self.places])
        times[len(self.places) :] = conversions
        return times, self.table.rest_ms

    def solved(self, aim: Vector, other: Vector, budget: float | None) -> dict[str, str] | None:
        """The choice with the least aim, and then the least of the other, which is held within the budget.

        None where there is none.
        """
        bounds = [] if budget is None else [(other, budget)]
        best = self._minimum(aim, bounds)
        if best is None:
            return None
        reached = float(aim @ best)
        refined = self._minimum(other, [*bounds, (aim, reached + SLACK * (abs(reached) or _typical(aim)))])
        return self._choice(best if refined is None else refined)

    def _minimum(self, aim: Vector, bounds: Sequence[tuple[Vector, float]]) -> Vector | None:
        from scipy.optimize import Bounds, LinearConstraint, milp  # takes half a second to import

        constraints = [LinearConstraint(*self._one_rung()), *map(_at_least, self._converted())]
        for limited, most in bounds:
            scale = abs(most) or _typical(limited)
            constraints.append(LinearConstraint(limited[None, :] / scale, -np.inf, most / scale))
        found = milp(
            aim / _typical(aim),
            integrality=np.arange(self.size) < len(self.places),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 1e-9},
        )
        return None if found.x is None else np.asarray(found.x)

    def _choice(self, values: Vector) -> dict[str, str]:
        taken = zip(self.places, values, strict=False)
        return {name: rung.name for (name, rung), value in taken if value > 0.5}

    def _of_places(self, values: Sequence[Any]) -> Vector:
        return np.concatenate([np.asarray(values, dtype=float), np.zeros(self.size - len(values))])

    def _one_rung(self) -> tuple[Any, int, int]:
        """Of each layer."""
        rows = [self._of_places([name == one.layer for name, _ in self.places]) for one in self.table.layers]
        return np.array(rows), 1, 1

    def _converted(self) -> list[tuple[Vector, float]]:
        """Rows with what each, times the variables, must come to at least."""
        rows = []
        for position, flow in enumerate(self.table.flows):
            for consumer in flow.consumers:
                for column, (first, second) in enumerate(
                    ((flow.producer, consumer), (consumer, flow.producer))
                ):
                    row, constant = self._difference(first, second)
                    row[len(self.places) + 2 * position + column] += 1
                    rows.append((row, constant))
        return rows

    def _difference(self, first: str, second: str) -> tuple[Vector, float]:
        """How much more in float the first is, brought to the other side of the inequality."""
        zero = np.zeros(self.size)
        row = self.in_float.get(second, zero) - self.in_float.get(first, zero)
        return row, float(first == OUTSIDE) - float(second == OUTSIDE)


def _at_least(row: tuple[Vector, float]) -> Any:
    from scipy.optimize import LinearConstraint

    return LinearConstraint(row[0][None, :], row[1], np.inf)


def _typical(values: Vector) -> float:
    """The geometric mean of those that are not zero, by which the solver's tolerances make sense."""
    known = np.abs(values[values != 0])
    return float(np.exp(np.log(known).mean())) if len(known) else 1.0


def _said(cost: Cost, value: float) -> str:
    return f"{value:.4g} ms" if cost == "latency" else f"{value / 1000:.4g} kB"
