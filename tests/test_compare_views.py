"""Views of strategies on made up values: what stands out, what is chosen, and each format."""

import csv
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest
from report_samples import BROKEN, DIFFERENCE, FALLBACK, FLOAT, PER_CHANNEL, PTQ, QAT, STRATEGIES, strategy
from test_report_tables import same_as_golden

from qtrack.errors import InputError
from qtrack.ledger.outcomes import Samples
from qtrack.outcome import Evaluation
from qtrack.recipe import Recipe
from qtrack.recipe_diff import differing_fields
from qtrack.report.certainty import needed_by
from qtrack.report.choice import chosen, field_names, ordered
from qtrack.report.classes import classes_view
from qtrack.report.comparison import comparison, comparison_view
from qtrack.report.flips import flips_view
from qtrack.report.formats import csv_text, markdown_text
from qtrack.report.page import page
from qtrack.report.pareto import pareto_optimal
from qtrack.report.recipes import recipes_view
from qtrack.report.tables import Column, Table
from qtrack.report.view import View

HOSTILE = "=<b>|`*x*`\n[@team](#1)"


def stages(found):
    return [s.stage for s in found]


# which stand out


def optimal(*strategies):
    return [strategies[i].stage for i in sorted(pareto_optimal(strategies))]


def test_what_is_beaten_in_nothing_stands_out():
    assert optimal(*STRATEGIES) == ["float", "ptq", "qat"]


def test_equal_strategies_do_not_beat_each_other():
    assert optimal(QAT, replace(QAT, stage="again")) == ["qat", "again"]


def test_latencies_within_the_spread_are_equal():
    slower = replace(QAT, stage="slower", latency_ms=QAT.latency_ms + 0.1)
    assert optimal(QAT, slower) == ["qat"]
    assert optimal(QAT, replace(slower, latency_iqr_ms=0.2)) == ["qat", "slower"]
    assert optimal(QAT, replace(slower, latency_ms=None)) == ["qat", "slower"]
    assert optimal(QAT, replace(slower, latency_iqr_ms=0.2, value=0.97)) == ["qat"]


def test_strategies_of_other_tasks_and_what_failed_take_no_part():
    other = replace(PER_CHANNEL, experiment="other")
    assert optimal(QAT, PER_CHANNEL, other, BROKEN) == ["qat", "per_channel"]
    assert len(optimal(QAT, other)) == 2
    assert optimal(QAT, replace(PER_CHANNEL, metric="f1")) == ["qat", "per_channel"]


def test_nothing_is_marked_where_nothing_is_beaten():
    assert [row[1] for row in comparison([QAT, PTQ]).rows] == ["", ""]


def test_not_sure_says_with_how_many_samples_and_how_many_would_do():
    notes = comparison([FALLBACK]).notes
    assert "fallback: not sure with 720 samples; about 918 would decide at the same rates" in notes
    assert needed_by(QAT) is None
    at_the_limit = replace(FALLBACK, max_drop=FALLBACK.drop)
    assert needed_by(at_the_limit) is None
    assert any("no number of them is known to decide" in note for note in comparison([at_the_limit]).notes)
    assert needed_by(replace(FALLBACK, samples=None)) is None


def test_records_say_what_the_marks_say():
    records = {record["stage"]: record for record in comparison_view(STRATEGIES).records}
    assert [stage for stage, record in records.items() if record["pareto"]] == ["float", "ptq", "qat"]
    assert records["fallback"]["samples_needed"] == 918
    assert records["qat"]["forward_samples"] == 12_080


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_narrow_terminal_leaves_columns_out_and_says_which(width):
    table = comparison(STRATEGIES, width)
    titles = [column.title for column in table.columns]
    said = [note for note in table.notes if note.startswith("left out to fit")]
    assert ("evals" in titles) == (not said)
    assert ("fwd\nk" in titles) == any(note.startswith("fwd:") for note in table.notes)
    assert table.width <= width or len(titles) == 10


def test_rows_that_are_not_in_blocks_carry_their_campaign():
    other = replace(QAT, campaign="deadbe")
    table = comparison([PTQ, other, FLOAT])
    assert table.headings == ()
    assert [row[0] for row in table.rows] == ["c0ffee/ptq", "deadbe/qat", "c0ffee/float"]


# which are chosen


TAGS = {s.run_id: {"qtrack.engine": "x86", "mlflow.user": "me"} for s in (PTQ, QAT)}


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        (["stage=qat"], ["qat"]),
        (["target_met=true"], ["float", "qat"]),
        (["target_met=null"], ["fallback", "broken"]),
        (["float_layers=3"], ["fallback"]),
        (["float_layers=3.0"], ["fallback"]),
        (["float_layers=three"], []),
        (["qtrack.engine=x86"], ["ptq", "qat"]),
        (["qtrack.engine=x86", "size_bytes=41000"], ["ptq"]),
        (["qtrack.engine=null", "status=FAILED"], ["broken"]),
    ],
)
def test_strategies_are_chosen_by_fields_and_tags(conditions, found):
    assert stages(chosen(STRATEGIES, conditions, lambda: TAGS)) == found


def test_the_same_run_may_be_listed_twice():
    assert len(chosen([QAT, QAT], ["stage=qat"], dict)) == 2


def test_tags_are_not_asked_for_a_field():
    assert stages(chosen(STRATEGIES, ["stage=qat"], lambda: 1 / 0)) == ["qat"]


def test_an_unknown_field_is_one_line_that_lists_what_there_is():
    with pytest.raises(InputError, match=r"--filter: no field 'nope'; there are run_id, .*, qtrack\.engine$"):
        chosen(STRATEGIES, ["nope=1"], lambda: TAGS)
    with pytest.raises(InputError, match="--sort: no field 'nope'; there are run_id, "):
        ordered(STRATEGIES, "nope:desc")


def test_a_condition_or_an_order_that_is_none_is_refused():
    with pytest.raises(InputError, match="--filter stage: write it as FIELD=VALUE"):
        chosen(STRATEGIES, ["stage"], dict)
    with pytest.raises(InputError, match="--sort value:down: the order is asc or desc"):
        ordered(STRATEGIES, "value:down")


@pytest.mark.parametrize("by", field_names())
def test_every_field_can_be_sorted_by(by):
    assert len(ordered(STRATEGIES, by)) == len(STRATEGIES)


def test_strategies_without_the_field_come_last_either_way():
    assert stages(ordered(STRATEGIES, "value"))[-2:] == ["float", "broken"]
    assert stages(ordered(STRATEGIES, "value:desc"))[::5] == ["float", "broken"]


# what differs


STATIC = Recipe(engine="x86")
RECIPES = {
    "float": STATIC.with_mode("float"),
    "ptq": STATIC,
    "per_channel": STATIC.with_weights(granularity="per_channel"),
    "fallback": STATIC.with_weights(granularity="per_channel").keeping_float("head", "stem.conv"),
}


def with_recipes(recipes=RECIPES):
    strategies = [strategy(name, 0.9, recipe_digest=recipe.digest) for name, recipe in recipes.items()]
    return recipes_view(strategies, {recipe.digest: recipe for recipe in recipes.values()})


def test_what_differs_between_recipes_looks_as_it_did():
    same_as_golden("only_diff.txt", with_recipes().table)


def test_fields_are_named_by_their_full_path_and_only_if_they_differ():
    found = differing_fields([STATIC, STATIC.with_activations(observer={"kind": "min_max"})])
    assert found == {"default.activation.observer.kind": ["histogram", "min_max"]}
    assert differing_fields([STATIC, STATIC]) == {}


def test_training_that_only_one_has_differs_field_by_field():
    found = differing_fields([STATIC, STATIC.having(training={"epochs": 2})])
    assert found["training.epochs"] == [None, "2"]
    assert "training" not in found
    assert "training.seed" not in found  # null in the one, absent in the other


def test_an_override_has_a_place():
    one, two = STATIC.keeping_float("a", "b"), STATIC.keeping_float("b", "a")
    assert list(differing_fields([one, two])) == ["overrides.0", "overrides.1"]


def test_an_override_that_says_more_than_a_mode_is_written_out():
    override = {"type": "Linear", "scheme": {"mode": "dynamic"}}
    view = with_recipes({"a": STATIC, "b": STATIC.having(overrides=[override])})
    assert view.table.rows[-1][1].startswith("{type: Linear, scheme: {mode: dynamic")


def test_equal_recipes_are_said_to_be_equal():
    view = with_recipes({"a": STATIC, "b": STATIC})
    assert (view.table.rows, view.records) == ((), [])
    assert view.table.notes == ("the recipes of these 2 strategies are equal",)


# which classes, which samples


LABELS = np.array([0, 0, 1, 1, 1, 2])


def samples(before, after, labels=LABELS):
    return Samples(*(Evaluation(np.array(scores, float), labels) for scores in (before, after)))


BY_CLASS = classes_view(
    [strategy("float"), strategy("ptq"), strategy("qat")],
    [
        samples([1] * 6, [1] * 6),
        samples([1, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 0]),
        samples([1] * 6, [1, 1, 0, 1, 1, 1]),
    ],
)


def test_classes_look_as_they_did():
    same_as_golden("by_class.txt", BY_CLASS.table)


def test_the_class_that_lost_most_comes_first():
    assert [row[0] for row in BY_CLASS.table.rows] == ["1", "2", "0"]
    assert BY_CLASS.records[1] == {
        "label": 1, "stage": "ptq", "run_id": strategy("ptq").run_id,
        "samples": 3, "lost": 2, "gained": 0, "net": -2,
    }  # fmt: skip


def test_without_labels_there_are_no_classes():
    with pytest.raises(InputError, match="no labels are on record"):
        classes_view([QAT], [samples([1], [0], None)])


def test_more_strategies_than_fit_are_named_below():
    many = [strategy(f"s{i}") for i in range(30)]
    table = classes_view(many, [samples([1] * 6, [0] * 6)] * 30, 100).table
    assert table.width <= 100
    assert "s29; --csv has all" in table.notes[-1]


def test_flips_look_as_they_did():
    same_as_golden("flips.txt", flips_view(DIFFERENCE).table)


def test_flips_of_other_samples_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"^ptq and per_channel are not comparable: other samples$"):
        flips_view(replace(DIFFERENCE, unpaired="not comparable: other samples", flips=()))


# formats


VIEW = View(
    HOSTILE,
    Table((Column("a", "left"), Column("b\nc")), ((HOSTILE, "1"), ("x", "")), ("note",), ((1, HOSTILE),)),
    [{"a": HOSTILE, "n": -1.5, "none": None, "yes": True, "list": ["@x", "y"]}, {"a": "-x", "more": 1}],
    ("take <b>",),
)


def test_csv_reads_back_and_executes_nothing():
    first, second = csv.DictReader(StringIO(csv_text(VIEW)))
    assert first["a"] == f"'{HOSTILE}"
    assert (first["n"], first["none"], first["yes"], first["list"]) == ("-1.5", "", "true", "'@x;y")
    assert (second["a"], second["more"], second["n"]) == ("'-x", "1", "")


def test_markdown_is_a_table_of_plain_text():
    assert markdown_text(VIEW).splitlines() == [
        "| a | b c |",
        "|---|---:|",
        r"| =&lt;b&gt;\|\`\*x\*\` \[@<!-- -->team\](#<!-- -->1) | 1 |",
        r"| =&lt;b&gt;\|\`\*x\*\` \[@<!-- -->team\](#<!-- -->1) |  |",
        "| x |  |",
        "",
        "note",
        "",
        "**take &lt;b&gt;**",
    ]


def test_markdown_ends_with_the_verdict():
    text = markdown_text(comparison_view(STRATEGIES))
    assert text.splitlines()[-1].startswith("**smallest that surely meets the target: qat")


def test_a_page_shows_headings_as_rows_and_names_as_text():
    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.texts = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.texts.append(data)

    reader = Tags()
    reader.feed(page(VIEW.title, VIEW.table, sentences=VIEW.verdict))
    assert reader.texts.count(HOSTILE) == 3
    assert "b" not in reader.tags
    assert reader.tags.count("tr") == 4
