"""How often is a target that a search calls met truly missed on fresh data?

    python benchmarks/confidence.py --markdown

A search tries many models on the same validation samples, so that the one it ends with is also the one that
was lucky on them. Here the stage's own code searches networks whose true drop is known: only the scores are
made up.

* Each sample has a threshold t, uniform in 0..1, and each layer a damage d. With the layers L in integers, a
  sample is hit where t < the sum over L of d * g, with g uniform in 0..2 for each sample and layer. So the
  share of samples hit is the sum of d exactly, and the same samples are hit again by other sets of layers.
  Rounding also has whims of its own in every model: in a share OWN of the samples, drawn for each set of
  layers anew, t is another one. Without it (0) a search along a ranking meets nested sets of samples.
* Float is right on 98% of samples. One that it has right is lost when hit; of those that it has wrong, one
  in five is won. The true drop is the share of samples hit, times 0.98 - 0.2 * 0.02.
* SHAPES says how damage is spread over layers, and in which order the layer table has them. Those with many
  sets of layers just beyond the target are the bad case: one lucky draw among them is enough.
* A search misses if it calls the target met and the true drop is beyond it. Each has a network and samples of
  its own. With confidence 0.95, two-sided, a single model at the very target is to pass with 2.5%.
* What calibration samples tell is made up too: the damage of each layer, but for a factor (lognormal, 0.3).
  ``no graph`` is the search that has only the layer table's ranking, as with backends without a graph.
* ``exhaustive`` (the first length of the ranking that passes, all tried) is there to compare with: it
  accounts for nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numerics import machine, markdown, plain
from numpy.typing import NDArray
from scipy.stats import binomtest

from qtrack.outcome import Cost, Evaluation, LayerRow, Outcome
from qtrack.recipe import Module, Recipe, Static
from qtrack.stages import STAGES, Evidence, Judged, Stage, Target, judge

Floats = NDArray[np.float64]
Generator = np.random.Generator

RIGHT = 0.98
WON = 0.2
CALIBRATION_NOISE = 0.3
DROP_PER_HIT = RIGHT - WON * (1 - RIGHT)


@dataclass(frozen=True, eq=False)
class Network:
    """A network as the search sees it, and what it does not see: the damage of each layer."""

    damages: dict[str, float]
    ranked: list[str]
    """As the layer table has them, the largest share of the error first."""

    def true_drop(self, recipe: Recipe) -> float:
        return DROP_PER_HIT * sum(self.damages[layer] for layer in quantized(recipe, self.damages))

    @property
    def fewest(self) -> Callable[[float], int]:
        """Layers in float, along the ranking, with which the true drop is within so much."""
        left = np.cumsum([self.damages[layer] for layer in reversed(self.ranked)])[::-1]
        return lambda max_drop: int((DROP_PER_HIT * left > max_drop).sum())


def network(damages: Floats, noise: float, rng: Generator) -> Network:
    """Damages in order; the ranking knows each but for a factor, lognormal with so much noise."""
    names = [f"layer{i}" for i in range(len(damages))]
    seen = damages * np.exp(noise * rng.standard_normal(len(damages)))
    return Network(dict(zip(names, damages.tolist(), strict=True)), [names[i] for i in np.argsort(-seen)])


def even(rng: Generator) -> Network:
    return network(np.full(20, 0.003), 0.0, rng)


def small_steps(rng: Generator) -> Network:
    return network(np.repeat([0.03, 0.001], [8, 32]), 0.0, rng)


def uneven(rng: Generator) -> Network:
    return network(0.3 * rng.dirichlet(np.full(20, 0.5)), 0.5, rng)


def plateau(rng: Generator) -> Network:
    made = network(np.repeat([0.05, 0.01075, 0.00005], [4, 2, 14]), 0.0, rng)
    hidden = ["layer4", "layer5"]  # so that the ranking comes to them last
    return Network(made.damages, [name for name in made.ranked if name not in hidden] + hidden)


SHAPES: dict[str, tuple[Callable[[Generator], Network], str]] = {
    "even": (even, "20 layers alike, 0.3 points each"),
    "small steps": (small_steps, "8 layers of 3 points, 32 of 0.1"),
    "uneven": (uneven, "20 layers by chance, 30 points in all, ranked with errors"),
    "plateau": (plateau, "0.1 to 0.2 points beyond the target from the fifth layer to the last but one"),
}


class Validation:
    """Samples drawn for one search, and the outcome of each recipe on them; counts what is tried."""

    def __init__(self, made: Network, samples: int, own: float, target: Target, rng: Generator) -> None:
        self.network, self.own, self.target = made, own, target
        self.seed = int(rng.integers(2**32))
        self.right = rng.random(samples) < RIGHT
        self.lucky = rng.random(samples) < WON
        self.threshold = rng.random(samples)
        self.weights = {layer: 2 * d * rng.random(samples) for layer, d in made.damages.items()}
        self.evaluations = 0
        floating = self.outcome(START.with_mode("float"))
        self.baseline = judge(floating, floating, target)

    def scores(self, integers: list[str]) -> Floats:
        hurt = sum((self.weights[layer] for layer in integers), np.zeros(1))
        hit = self._thresholds(integers) < hurt
        return np.where(self.right, ~hit, hit & self.lucky).astype(float)

    def _thresholds(self, integers: list[str]) -> Floats:
        """Each sample's, or its own for this set of layers: the same whenever that is asked for."""
        mask = sum(1 << i for i, layer in enumerate(self.weights) if layer in integers)
        rng = np.random.default_rng([self.seed, mask])
        is_own, fresh = rng.random((2, len(self.threshold)))
        return np.where(is_own < self.own, fresh, self.threshold)

    def outcome(self, recipe: Recipe) -> Outcome:
        integers = quantized(recipe, self.weights)
        return Outcome(
            recipe=recipe,
            build=_no_model,
            example=None,
            metric="accuracy",
            validation=Evaluation(self.scores(integers)),
            cost=Cost(0.0, {}, len(self.right), 1),
            size_bytes=0,
            layers=tuple(_row(i, layer, len(self.weights)) for i, layer in enumerate(self.network.ranked)),
            float_layers=tuple(layer for layer in self.weights if layer not in integers),
        )

    def probe(self, recipe: Recipe) -> Judged:
        self.evaluations += 1
        return judge(self.outcome(recipe), self.baseline.outcome, self.target)

    def evidence(self, graph: bool) -> Evidence:
        """What the pipeline hands to a stage after ``float`` and ``ptq``."""
        start = judge(self.outcome(START), self.baseline.outcome, self.target)
        earlier = {"float": self.baseline, "ptq": start}
        mixtures = Calibrated(self) if graph else None
        return Evidence(self.target, self.baseline, start, earlier, self.probe, mixtures=lambda: mixtures)


class Calibrated:
    """What calibration samples tell of mixtures: damages, each but for a factor of its own."""

    def __init__(self, validation: Validation) -> None:
        self.validation = validation
        rng = np.random.default_rng([validation.seed, 1])
        self.damages = {
            layer: damage * np.exp(CALIBRATION_NOISE * rng.standard_normal())
            for layer, damage in validation.network.damages.items()
        }

    def coupled(self) -> Sequence[frozenset[str]]:
        return ()

    def gains(self) -> Mapping[str, float]:
        return {}

    def order(
        self, costs: Mapping[str, float], together: Mapping[str, frozenset[str]] | None = None
    ) -> tuple[str, ...]:
        return tuple(sorted(costs, key=lambda layer: -self.damages[layer] / costs[layer]))

    def harm(self, off: Collection[str]) -> float:
        return sum(damage for layer, damage in self.damages.items() if layer not in off)

    def scores(self, off: Collection[str], positions: Sequence[int]) -> Floats:
        integers = [layer for layer in self.damages if layer not in off]
        return self.validation.scores(integers)[list(positions)]


START = Recipe(engine="x86")


def _row(position: int, layer: str, count: int) -> LayerRow:
    return LayerRow(position, layer, "Conv2d", "int8", 100, 100, own_sqnr_db=float(position - count))


def _no_model() -> Any:
    raise AssertionError("a search on made-up scores has no model")


def quantized(recipe: Recipe, layers: Iterable[str]) -> list[str]:
    """Those that the recipe does not leave in float."""
    root = Module("", "Net")
    return [one for one in layers if isinstance(recipe.scheme_for([root, Module(one, "Conv2d")]), Static)]


def exhaustive(recipe: Recipe, evidence: Evidence) -> Recipe:
    """Every length of the ranking; the shortest that passes, else all in float."""
    ranking = [row.layer for row in evidence.starting_point().outcome.by_own_share()]
    recipes = [recipe.keeping_float(*ranking[:count]) for count in range(len(ranking) + 1)]
    tried = [evidence.starting_point(), *(evidence.probe(one) for one in recipes[1:])]
    return next((one for one, judged in zip(recipes, tried, strict=True) if judged.meets_target), recipes[-1])


@dataclass(frozen=True)
class Search:
    """How one search ended."""

    called_met: bool
    beyond: float
    """The true drop less the target."""
    evaluations: int
    float_layers: int
    enough: int
    """Layers in float with which the target is truly met, along the ranking."""

    @property
    def missed(self) -> bool:
        return self.called_met and self.beyond > 1e-12


def search(stage: Stage, validation: Validation, graph: bool) -> Search:
    """Let the stage search, and look at what it does not see; its last model is judged as a stage's is."""
    made, target = validation.network, validation.target
    chosen = stage(START, validation.evidence(graph))
    judged = judge(validation.outcome(chosen), validation.baseline.outcome, target)
    return Search(
        called_met=judged.meets_target is True,
        beyond=made.true_drop(chosen) - target.max_drop,
        evaluations=validation.evaluations,
        float_layers=len(judged.outcome.float_layers),
        enough=made.fewest(target.max_drop),
    )


def searches(
    stage: Stage,
    shape: str,
    *,
    samples: int,
    own: float,
    target: Target,
    count: int = 200,
    seed: int = 0,
    graph: bool = True,
) -> list[Search]:
    """So many, each of a network and samples of its own."""
    make = SHAPES[shape][0]
    rngs = [np.random.default_rng([seed, i]) for i in range(count)]
    return [search(stage, Validation(make(rng), samples, own, target, rng), graph) for rng in rngs]


HEADER = (
    "damage",
    "images",
    "own %",
    "search",
    "called met",
    "truly missed",
    "share missed % [95%]",
    "missed by, points: mean, most",
    "evaluations",
    "layers in float",
    "truly enough",
)


def row(shape: str, samples: int, own: float, name: str, found: list[Search]) -> tuple[str, ...]:
    missed = [one.beyond for one in found if one.missed]
    share = binomtest(len(missed), len(found)).proportion_ci()
    return (
        shape,
        str(samples),
        f"{100 * own:.0f}",
        name,
        f"{sum(one.called_met for one in found)} of {len(found)}",
        str(len(missed)),
        f"{100 * len(missed) / len(found):.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]",
        f"{100 * np.mean(missed):.2f}, {100 * max(missed):.2f}" if missed else "",
        f"{np.mean([one.evaluations for one in found]):.1f}",
        f"{np.mean([one.float_layers for one in found]):.1f}",
        f"{np.mean([one.enough for one in found]):.1f}",
    )


def rows(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    target = Target(max_drop=options.max_drop, confidence=options.confidence)
    stages: dict[str, Any] = {**{name: STAGES[name] for name in options.stages}, "exhaustive": exhaustive}
    drawn = {"target": target, "count": options.searches, "seed": options.seed}
    for shape, samples, own in product(SHAPES, options.samples, options.own):
        for name, stage in stages.items():
            found = searches(stage, shape, samples=samples, own=own, **drawn)
            yield row(shape, samples, own, name, found)
            if stage is not exhaustive:
                found = searches(stage, shape, samples=samples, own=own, graph=False, **drawn)
                yield row(shape, samples, own, f"{name}, no graph", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["fallback"], choices=STAGES, metavar="NAME")
    parser.add_argument("--samples", nargs="+", type=int, default=[720, 5000], metavar="N")
    parser.add_argument("--own", nargs="+", type=float, default=[0.0, 0.2, 0.5], metavar="OWN")
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--max-drop", type=float, default=0.02)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    draw = markdown if options.markdown else plain
    print(machine(), draw(HEADER, list(rows(options))), sep="\n\n")
    print("\n" + "\n".join(f"{name}: {words}" for name, (_, words) in SHAPES.items()))


if __name__ == "__main__":
    main()
