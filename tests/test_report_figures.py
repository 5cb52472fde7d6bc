from dataclasses import replace

import numpy as np
import pytest
from report_samples import BROKEN, FLOAT, LAYERS, STRATEGIES, evaluation, outcome, result, row

from qtrack.outcome import Evaluation
from qtrack.recipe import Recipe
from qtrack.report.figures import classes_figure, layers_figure, stage_figures, strategies_figure


def names(figures):
    return [name for name, _ in figures]


def drawn(figure, path):
    figure.savefig(path)
    assert path.stat().st_size > 5_000
    return figure


def test_a_stage_with_all_data_has_all_figures(tmp_path):
    for name, figure in stage_figures(result()):
        drawn(figure, tmp_path / f"{name}.png")
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["classes", "histograms", "layers"]


def test_there_is_no_figure_where_there_is_no_data():
    bare = result(layers=(), histograms={}, validation=Evaluation(np.ones(200)))
    assert names(stage_figures(bare)) == []


def test_the_float_stage_has_no_figures():
    assert names(stage_figures(result(recipe=Recipe().with_mode("float"), layers=(), histograms={}))) == []


def test_layers_are_drawn_worst_first():
    figure = layers_figure("ptq", outcome(layers=LAYERS).by_own_share())
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["blocks.0.depthwise", "stem.conv", "blocks.0.add", "head"]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top


def test_names_with_dollars_are_no_formulas(tmp_path):
    ranked = [row(0, "a$x_{$b", sqnr_db=1.0, own_sqnr_db=1.0), row(1, "c", sqnr_db=None, own_sqnr_db=4.0)]
    drawn(layers_figure("$s_{$", ranked), tmp_path / "layers.png")


def test_of_very_many_layers_the_worst_are_drawn(tmp_path):
    ranked = [row(i, f"layer{i}", sqnr_db=1.0, own_sqnr_db=float(i)) for i in range(200)]
    figure = drawn(layers_figure("ptq", ranked), tmp_path / "layers.png")
    assert len(figure.axes[0].get_yticklabels()) == 40


def test_of_very_many_classes_those_that_lost_most_are_drawn(tmp_path):
    labels = np.arange(2000) % 100
    after = np.where(labels == 77, 5, labels)
    figure = drawn(
        classes_figure("ptq", evaluation(labels, labels), evaluation(after, labels)), tmp_path / "classes.png"
    )
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(shown) == 20
    assert "77" in shown


@pytest.mark.parametrize(
    "strategies", [STRATEGIES, [FLOAT], [replace(s, max_drop=None, size_bytes=None) for s in STRATEGIES]]
)
def test_strategies_are_drawn(strategies, tmp_path):
    drawn(strategies_figure(strategies), tmp_path / "strategies.png")


def test_without_a_finished_stage_there_is_no_figure_of_strategies():
    assert strategies_figure([BROKEN]) is None
