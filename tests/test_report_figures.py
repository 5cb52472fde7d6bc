from dataclasses import replace

import numpy as np
import pytest
from report_samples import BROKEN, FLOAT, LAYERS, REPAIRED, STRATEGIES, evaluation, result, row

from qtrack.outcome import Evaluation
from qtrack.recipe import Recipe
from qtrack.report.figures import classes_figure, stage_figures, strategies_figure
from qtrack.report.layer_figures import layers_figure, moved_figure
from qtrack.report.tables import paired_layers


def names(figures):
    return [name for name, _ in figures]


def plain(rows):
    return [vars(row) for row in rows]


def labels(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


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
    figure = layers_figure("ptq", plain(LAYERS))
    assert labels(figure) == ["blocks.0.depthwise", "stem.conv", "blocks.0.add", "head"]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top


def test_names_with_dollars_are_no_formulas(tmp_path):
    ranked = [row(0, "a$x_{$b", sqnr_db=1.0, own_sqnr_db=1.0), row(1, "c", sqnr_db=None, own_sqnr_db=4.0)]
    drawn(layers_figure("$s_{$", plain(ranked)), tmp_path / "layers.png")
    pairs = paired_layers(plain(ranked), plain(ranked))
    drawn(moved_figure(("$s_{$", "$t$"), pairs), tmp_path / "moved.png")


def test_of_very_many_layers_the_worst_are_drawn(tmp_path):
    ranked = [row(i, f"layer{i}", sqnr_db=1.0, own_sqnr_db=float(i)) for i in range(200)]
    figure = drawn(layers_figure("ptq", plain(ranked)), tmp_path / "layers.png")
    assert len(labels(figure)) == 40
    assert labels(layers_figure("ptq", plain(ranked), 3)) == ["layer0", "layer1", "layer2"]


@pytest.mark.slow
def test_a_picture_has_a_size_that_can_be_drawn(tmp_path):
    ranked = plain([row(i, f"layer{i}", sqnr_db=1.0, own_sqnr_db=float(i)) for i in range(2500)])
    drawn(layers_figure("ptq", ranked, 2500), tmp_path / "layers.png")
    drawn(moved_figure(("a", "b"), paired_layers(ranked, ranked), 2500), tmp_path / "moved.png")


def test_the_main_sources_of_error_are_in_bold():
    ticks = layers_figure("ptq", plain(LAYERS)).axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks if tick.get_fontweight() == "bold"] == ["blocks.0.depthwise"]


def test_layers_without_a_share_of_their_own_are_not_drawn():
    assert layers_figure("float", plain(LAYERS[2:3])) is None
    assert moved_figure(("a", "b"), paired_layers(plain(LAYERS[2:3]), plain(LAYERS[2:3]))) is None


def test_what_moved_between_two_runs_is_drawn_in_the_tables_order(tmp_path):
    pairs = paired_layers(plain(LAYERS), plain(REPAIRED))
    figure = drawn(moved_figure(("ptq", "per_channel"), pairs), tmp_path / "moved.png")
    assert labels(figure) == [pair["layer"] for pair in pairs]
    assert "float32 > int8" in [text.get_text() for text in figure.axes[0].texts]


def test_a_layer_of_one_run_only_is_said_to_be_absent():
    figure = moved_figure(("ptq", "per_channel"), paired_layers(plain(LAYERS), plain(REPAIRED[:-1])))
    assert "int8 > absent" in [text.get_text() for text in figure.axes[0].texts]


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
