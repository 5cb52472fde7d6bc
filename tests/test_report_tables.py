import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import (
    BROKEN,
    DIFFERENCE,
    EXPLANATION,
    FLOAT,
    LAYERS,
    PER_CHANNEL,
    PTQ,
    QAT,
    REPAIRED,
    STRATEGIES,
    row,
    strategy,
)

from qtrack.cli.render import drawn
from qtrack.report import cells
from qtrack.report.cells import Scale
from qtrack.report.comparison import comparison
from qtrack.report.difference import difference, explanation
from qtrack.report.sources import main_sources, worst_first
from qtrack.report.tables import layers, moved, paired_layers

GOLDEN = Path(__file__).parent / "golden"
ROWS = [asdict(row) for row in LAYERS]
REPAIRED_ROWS = [asdict(row) for row in REPAIRED]


def same_as_golden(name, table):
    """Compare with the file; QTRACK_GOLDEN=write writes it anew."""
    text = "\n".join([drawn(table), *table.notes]) + "\n"
    path = GOLDEN / name
    if os.environ.get("QTRACK_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_the_comparison_looks_as_it_did():
    same_as_golden("compare.txt", comparison(STRATEGIES, 100))


def test_the_layer_table_looks_as_it_did():
    same_as_golden("layers.txt", layers(ROWS))


def test_what_moved_between_two_runs_looks_as_it_did():
    same_as_golden("moved.txt", moved(paired_layers(ROWS, REPAIRED_ROWS), ("ptq", "per_channel")))


def test_what_differs_between_two_runs_looks_as_it_did():
    same_as_golden("difference.txt", difference(DIFFERENCE))


def test_what_each_difference_does_alone_looks_as_it_did():
    same_as_golden("explanation.txt", explanation(EXPLANATION, "accuracy", 200))


def test_the_comparison_fits_100_columns():
    assert comparison(STRATEGIES, 100).width <= 100
    assert max(map(len, drawn(comparison(STRATEGIES, 100)).splitlines())) <= 100


def test_nothing_is_shortened_where_no_width_is_given():
    assert "blocks.1.depthwise" in drawn(comparison(STRATEGIES))


def test_a_run_that_did_not_finish_shows_its_status():
    assert comparison([BROKEN]).rows[0][4] == "FAILED"


def test_each_of_several_campaigns_has_its_line():
    lines = drawn(
        comparison([PTQ, replace(PTQ, campaign="deadbe"), replace(QAT, campaign="deadbe")])
    ).splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["c0ffee", "ptq", "deadbe", "ptq", "qat"]


def test_a_metric_outside_0_to_1_is_no_percentage():
    table = comparison([strategy("ptq", 31.256, (0.5, 0.25, 0.75), False, metric="psnr")])
    assert table.columns[2].title == "psnr\n"
    assert table.rows[0][2:4] == ("31.26", "0.50 [0.25, 0.75]")


def test_many_samples_give_the_metric_another_digit():
    assert comparison([replace(PER_CHANNEL, samples=50_000)]).rows[0][2] == "92.78"


def test_layers_in_float_come_last():
    assert [row["layer"] for row in worst_first(ROWS)] == [
        "blocks.0.depthwise", "stem.conv", "blocks.0.add", "head", "blocks.0.project",
    ]  # fmt: skip


def noise(*own):
    return [asdict(row(i, f"layer{i}", own_sqnr_db=value)) for i, value in enumerate(own)]


def test_main_sources_make_up_half_of_all_own_noise():
    assert main_sources(noise(10.0, 0.0, 20.0)) == ("layer1",)
    assert main_sources(noise(30.0, None, 30.0, 30.0)) == ("layer0", "layer2")
    assert main_sources(noise(None, None)) == ()
    assert main_sources([]) == ()


@given(st.lists(st.floats(-20, 80) | st.none(), max_size=12))
def test_main_sources_are_the_fewest_that_suffice(own):
    rows = noise(*own)
    energies = {r["layer"]: 10 ** (-r["own_sqnr_db"] / 10) for r in rows if r["own_sqnr_db"] is not None}
    found = [energies[layer] for layer in main_sources(rows)]
    assert found == sorted(energies.values(), reverse=True)[: len(found)]
    half = sum(energies.values()) / 2
    assert sum(found) >= half * (1 - 1e-9)
    assert sum(found[:-1]) < half * (1 + 1e-9) or not found


def test_main_sources_are_marked_in_text_and_bold_on_a_terminal():
    table = layers(ROWS)
    assert [cells[1] for cells in table.rows] == ["*", "", "", "", ""]
    assert table.marked == {0}
    marked = next(line for line in drawn(table, color=True).splitlines() if "blocks.0.depthwise" in line)
    assert "\x1b[1m" in marked
    assert "\x1b" not in drawn(table)


def test_a_table_without_errors_marks_nothing():
    table = layers([ROWS[2]])
    assert table.marked == frozenset()
    assert not any(note.startswith("*") for note in table.notes)


def test_a_limit_says_what_it_leaves_out():
    table = layers(ROWS, limit=2)
    assert len(table.rows) == 2
    assert table.notes[0] == "3 more layers; --limit 5 shows all"


def test_paired_layers_hold_both_values_and_the_change():
    pairs = {pair["layer"]: pair for pair in paired_layers(ROWS, REPAIRED_ROWS)}
    assert pairs["blocks.0.depthwise"]["own_sqnr_db"] == [-2.25, 30.5]
    assert pairs["blocks.0.depthwise"]["own_sqnr_db_change"] == 32.75
    assert pairs["blocks.0.project"]["dtype"] == ["float32", "int8"]
    assert pairs["blocks.0.project"]["own_sqnr_db_change"] is None


def test_a_layer_of_one_run_only_is_paired_with_nothing():
    pairs = paired_layers(ROWS, REPAIRED_ROWS[:-1])
    assert [pair["dtype"] for pair in pairs if pair["layer"] == "head"] == [["int8", None]]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(None, 1, "-"), (float("nan"), 1, "-"), (-0.04, 1, "0.0"), (1234.5, 0, "1,234"), (-1.25, 2, "-1.25")],
)
def test_numbers(value, digits, text):
    assert cells.number(value, digits) == text


@pytest.mark.parametrize(
    ("sizes", "unit"), [([999], "B"), ([41_000, 3_000_000], "kB"), ([44_000_000], "MB"), ([None], "B")]
)
def test_the_unit_of_sizes_suits_the_smallest(sizes, unit):
    assert cells.size_unit(sizes)[0] == unit


def test_differences_of_percentages_are_points():
    assert Scale(True, 1).with_unit(0.02) == "2.0 points"
    assert Scale(False, 2).with_unit(0.02) == "0.02"


@given(st.floats(-100, 200) | st.none())
def test_bars_have_one_width(value):
    assert len(cells.bar(value)) == cells.BAR_CELLS


def test_a_bar_ends_at_60_db():
    assert cells.bar(60.0) == cells.bar(90.0) == "█" * 8
    assert cells.bar(-3.0).strip() == ""
    assert cells.bar(30.0).strip() == "████"


@given(st.lists(st.text("abc1", min_size=1, max_size=9), min_size=1, max_size=6), st.integers(3, 40))
def test_shortened_names_fit(parts, width):
    assert len(cells.shortened(".".join(parts), width)) <= width


def test_the_end_of_a_shortened_name_stays():
    assert cells.shortened("blocks.1.depthwise", 13) == "b.1.depthwise"
    assert cells.shortened("blocks.1.depthwise", 10) == "…depthwise"
    assert cells.shortened("head", 13) == "head"


def test_the_float_model_alone_is_a_table():
    assert len(comparison([FLOAT], 80).rows) == 1
