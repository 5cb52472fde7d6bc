"""All that a campaign came to, as one page: from the store, and at the campaign's end."""

import re
import time
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from diagnosis_samples import BAD, HEALTHY
from ledger_made import record, result, setting
from mlflow import MlflowClient
from recorded_tiny import artifact, command
from report_samples import BROKEN, FLOAT, LAYERS, PTQ, QAT, REPAIRED, row

from qtrack import Ledger
from qtrack.finding import Figure, Finding, Remedy
from qtrack.ledger.outcomes import Samples
from qtrack.outcome import Evaluation
from qtrack.recipe import Recipe
from qtrack.report.document import MOST_CLASSES, document
from qtrack.report.heat_map import MOST_LAYERS, heat_map
from qtrack.report.material import Material

pytest_plugins = ("recorded_campaign", "ledger_store")

HOSTILE = '<script>alert("x")</script>&--><b>\x1b[2J'
SHOWN = HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}")
HOSTILE_DIAGNOSIS = replace(
    BAD,
    subject=HOSTILE,
    text=HOSTILE,
    metric=HOSTILE,
    findings=(
        Finding(
            HOSTILE,
            "fault",
            HOSTILE,
            HOSTILE,
            (Figure(HOSTILE, HOSTILE, HOSTILE),),
            HOSTILE,
            layers=(HOSTILE,),
        ),
        Finding(HOSTILE, "not checked", HOSTILE),
    ),
    remedies=(Remedy(HOSTILE, {HOSTILE: HOSTILE}, why=HOSTILE),),
)
LOADING = {"script", "link", "img", "iframe", "object", "embed", "image", "foreignobject", "base", "form"}
ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"qtrack": "0.1.0", "torch": "2.13.0"},
    "cpu": {"features": ["avx2", "vnni"], "model": ""},
    "command": "qtrack run digits.yaml",
    "settings": {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
    "git": {"commit": "c0ffee" * 6, "dirty": True},
}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.texts = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v]

    def handle_data(self, data):
        self.texts.append(data)


def evaluation(scores, labels):
    return Evaluation(np.array(scores, float), np.array(labels))


def samples(classes=3):
    labels = np.arange(4 * classes) % classes
    return Samples(evaluation(np.ones(4 * classes), labels), evaluation(labels > 0, labels))


def started(found):
    return replace(found, started="2026-01-05T09:30:00.000+00:00")


def material(strategies=(FLOAT, PTQ, QAT, BROKEN), layers=LAYERS, environment=ENVIRONMENT, **changes):
    found = [started(s) for s in strategies]
    recipes = {0: Recipe().with_mode("float"), 1: Recipe(), 2: Recipe(seed=1)}
    found = [replace(s, recipe_digest=recipes[i].digest) if i in recipes else s for i, s in enumerate(found)]
    tables = {0: [], 1: [asdict(layer) for layer in layers], 2: [asdict(layer) for layer in REPAIRED]}
    diagnoses = {1: BAD, 2: HEALTHY}
    made = Material(found, tables, {i: samples() for i in range(3)}, recipes, environment, diagnoses)
    return replace(made, **changes)


# one page


def test_the_page_says_all():
    text = Page(document(material())).text
    assert "campaign c0ffee · 2026-01-05 09:30 UTC · commit c0ffeec0ffee, with changes" in text
    assert "smallest that surely meets the target: qat (drop 0.7 points, at worst 1.6; 44.1 kB)" in text
    for heading in (
        "Strategies",
        "Metric against size",
        "Diagnosis",
        "Layers",
        "Classes",
        "Environment",
        "How to reproduce",
    ):
        assert heading in text
    assert "packages.torch 2.13.0" in text
    assert "cpu.features avx2, vnni" in text
    assert "cpu.model" not in text
    assert "default.mode" in text
    assert "FAILED" in text


def test_the_page_says_what_was_found_and_what_to_try_next():
    text = Page(document(material())).text
    assert f"ptq data-insensitive: {BAD.text}" in text
    assert "accuracy % 99.4 40.1 99.0 39.0 38.9 60.6 [56.8, 64.0]" in text
    assert "weight SQNR gained: 21.4 dB; threshold: 10 dB" in text
    assert "not checked: redraw: the calibration split has too few samples" in text
    assert "fallback: {max_layers: 3} 57.5 6.0 - the worst layers stay in float" in text
    assert "qtrack diagnose c0ffee/ptq -o remedies.yaml" in text
    assert "qat healthy: nothing is wrong" in text
    assert "c0ffee/qat -o remedies.yaml" not in text


def test_the_page_says_how_to_come_to_the_same_again():
    text = Page(document(material())).text
    for line in (
        "pip install qtrack==0.1.0 torch==2.13.0",
        "qtrack run digits.yaml",
        "qtrack reproduce c0ffee/qat",
        "qtrack export c0ffee/qat -o recipe.yaml",
        "qtrack compare --campaign c0ffee",
    ):
        assert line in text
    assert "MLFLOW_TRACKING_URI" not in text


def test_a_name_with_a_meaning_for_the_shell_is_quoted():
    named = started(replace(QAT, stage="x; rm -rf ~"))
    text = Page(document(Material([named], {}, {}, {}, {}))).text
    assert "qtrack reproduce 'c0ffee/x; rm -rf ~'" in text


def test_the_page_loads_nothing_and_is_made_for_phones_too():
    text = document(material())
    page = Page(text)
    assert LOADING.isdisjoint(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)|@import|\son\w+=", text)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "default-src 'none'" in text
    tables = len(re.findall("<table", text))
    assert tables == len(re.findall('<div class="wide"><table', text)) == 9


def test_the_same_material_gives_the_same_page():
    assert document(material()) == document(material())


@pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib has no letter for what cannot be seen
def test_every_text_is_text_and_no_markup():
    strategies = [
        replace(
            s,
            stage=f"{HOSTILE}{i}",
            experiment=HOSTILE,
            campaign=HOSTILE,
            metric=HOSTILE,
            worst_layer=HOSTILE,
        )
        for i, s in enumerate((FLOAT, PTQ, QAT))
    ]
    layers = (row(0, HOSTILE, sqnr_db=1.0, own_sqnr_db=1.0),)
    hostile = material(
        strategies,
        layers,
        {HOSTILE: {HOSTILE: HOSTILE}, "command": HOSTILE},
        remarks=(HOSTILE,),
        diagnoses={1: HOSTILE_DIAGNOSIS},
    )
    page = Page(document(hostile))
    assert set(page.tags) <= set(Page(document(material())).tags)
    assert "\x1b" not in page.text
    assert page.text.count(SHOWN) > 15


def test_without_anything_but_strategies_there_is_a_page():
    page = Page(document(Material([started(BROKEN)], {}, {}, {}, {})))
    assert "no stage quantized anything" in page.text
    assert "svg" not in page.tags
    for heading in ("Diagnosis", "Layers", "Classes", "recipes", "Environment", "Not in this report"):
        assert heading not in page.text


def test_what_could_not_be_read_is_said():
    assert "Not in this report ptq: gone" in Page(document(material(remarks=("ptq: gone",)))).text


def test_many_layers_and_classes_stay_within_bounds():
    layers = tuple(row(i, f"features.{i}.block.conv", own_sqnr_db=float(i % 50)) for i in range(600))
    tables = {i: [asdict(layer) for layer in layers] for i in range(3)}
    found = material(layers=layers)
    large = replace(found, layers=tables, samples=dict.fromkeys(range(3), samples(1000)))
    began = time.perf_counter()
    text = document(large)
    assert time.perf_counter() - began < 5
    assert len(text) < 1_500_000
    assert f"the {MOST_LAYERS} worst of 600 layers" in text
    assert f"the first {MOST_CLASSES} of 1,000" in text


# the heat map


def test_the_heat_map_has_a_shade_for_each_error_and_none_where_there_is_none():
    found = heat_map(
        ["float", "ptq", "fixed"], [[], *([asdict(r) for r in rows] for rows in (LAYERS, REPAIRED))]
    )
    assert found.columns == ("ptq", "fixed")
    cells = dict(found.rows)
    assert list(cells) == ["stem.conv", "blocks.0.depthwise", "blocks.0.project", "blocks.0.add", "head"]
    assert cells["blocks.0.depthwise"] == (("-2.2", 0), ("30.5", 4))
    assert cells["blocks.0.project"] == (("float", None), ("33.3", 4))
    assert cells["head"] == (("60.0", 6), ("60.0", 6))


def test_a_layer_that_one_network_lacks_is_empty_there_and_exact_ones_say_so():
    first = [asdict(row(0, "a", own_sqnr_db=10.0)), asdict(row(1, "b"))]
    found = heat_map(["x", "y"], [first, first[:1]])
    assert dict(found.rows)["b"] == (("exact", None), ("", None))


def test_of_many_layers_the_worst_are_shown_in_their_order():
    rows = [asdict(row(i, f"l{i}", own_sqnr_db=float(-i))) for i in range(MOST_LAYERS + 5)]
    shown = [name for name, _ in heat_map(["x"], [rows]).rows]
    assert shown == [f"l{i}" for i in range(5, MOST_LAYERS + 5)]


def test_without_compared_layers_there_is_no_heat_map():
    assert heat_map(["float"], [[]]) is None


# the command


def test_the_command_writes_the_latest_campaign(folder, tmp_path):
    page = tmp_path / "all.html"
    done = command("report", "-o", page)
    assert done.exit_code == 0, done.output
    assert (done.stdout, done.stderr) == ("", f"wrote {page}\n")
    found = Page(page.read_text())
    campaign = Ledger.open().strategies()[0].campaign
    assert f"campaign {campaign}" in found.text
    assert f"qtrack compare --campaign {campaign}" in found.text
    assert "block.conv" in found.text
    assert "float_weights" not in found.text


@pytest.mark.parametrize("what", ["tiny", "tiny-"])
def test_an_experiment_or_the_beginning_of_a_campaign_will_do(folder, tmp_path, what):
    assert command("report", what, "-o", tmp_path / "r.html").exit_code == 0
    assert (tmp_path / "r.html").exists()


def test_what_is_neither_is_one_line(folder):
    done = command("report", "nope")
    assert done.exit_code == 2
    assert done.stderr.startswith(
        "qtrack: no experiment 'nope' (there are Default, tiny), and no campaign 'nope'; "
    )
    assert done.stderr.count("\n") == 1
    assert not Path("report.html").exists()


def test_a_store_without_campaigns_is_one_line(ledger):
    done = command("report")
    assert done.exit_code == 2
    assert "no campaign is recorded" in done.stderr


def test_a_campaign_without_stages_is_one_line(ledger):
    with ledger.campaign(setting()) as campaign:
        pass
    done = command("report", campaign.id)
    assert done.exit_code == 2
    assert done.stderr == f"qtrack: the campaign {campaign.id!r} has no stages on record\n"


def test_a_file_that_cannot_be_written_is_one_line(folder, tmp_path):
    done = command("report", "-o", tmp_path / "none" / "r.html")
    assert done.exit_code == 2
    assert done.stderr == f"qtrack: {tmp_path}/none/r.html: No such file or directory\n"


def test_a_damaged_run_is_left_out_with_a_remark(folder, tmp_path):
    file = artifact("ptq", "layers.json")
    kept = file.read_bytes()
    file.write_text("{")
    try:
        done = command("report", "-o", tmp_path / "r.html")
    finally:
        file.write_bytes(kept)
    assert done.exit_code == 0
    (remark,) = done.stderr.splitlines()[:-1]
    assert remark.startswith("ptq: layers.json of the run 'ptq'")
    assert "Not in this report ptq: layers.json" in Page((tmp_path / "r.html").read_text()).text


# at a campaign's end


def page_of(ledger):
    """Of the only campaign."""
    client = MlflowClient(ledger.uri)
    (run,) = client.search_runs(["1"], "tags.`qtrack.kind` = 'campaign'")
    present = {file.path for file in client.list_artifacts(run.info.run_id)}
    if "report.html" not in present:
        return None
    return Path(client.download_artifacts(run.info.run_id, "report.html")).read_text()


def test_a_campaign_holds_its_page(folder):
    ledger = Ledger.open()
    strategies = ledger.strategies()
    text = page_of(ledger)
    assert len(text) < 1_500_000
    recorded = command("report", strategies[0].campaign, "-o", "again.html")
    assert recorded.exit_code == 0
    now, then = (Page(page).text for page in (Path("again.html").read_text(), text))
    minutes = r"\d{4}-\d\d-\d\d \d\d:\d\d( to \d{4}-\d\d-\d\d \d\d:\d\d)? UTC"
    assert re.sub(minutes, "", now) == re.sub(minutes, "", then)  # a stage's start, and the campaign's end


def test_a_report_that_fails_is_a_warning(ledger, caplog):
    def report(strategies, results, environment):
        raise ZeroDivisionError("by zero")

    failing = Ledger.open(ledger.uri, report=report)
    record(failing)
    assert "the report could not be written: ZeroDivisionError: by zero" in caplog.text
    assert page_of(ledger) is None
    assert len(ledger.strategies()) == 3


def test_a_report_is_made_of_what_finished_without_secrets(ledger, monkeypatch):
    seen = []

    def report(strategies, results, environment):
        seen.append(([s.stage for s in strategies], environment))
        return "the page"

    made = setting(stages=("float", "ptq"))
    made = replace(made, environment={"command": "qtrack run --token hunter2", "git": None})
    reporting = Ledger.open(ledger.uri, report=report)
    with pytest.raises(ZeroDivisionError):
        fail_after_float(reporting, made)
    assert seen == [(["float"], {"command": "qtrack run --token ***", "git": None})]
    assert page_of(ledger) == "the page"


def fail_after_float(ledger, made):
    with ledger.campaign(made) as campaign:
        campaign.summary([result("float", 0)])
        raise ZeroDivisionError


def test_where_nothing_finished_there_is_no_report(ledger):
    reporting = Ledger.open(ledger.uri, report=lambda *_: pytest.fail("nothing to report"))
    with reporting.campaign(setting()):
        pass
    assert page_of(ledger) is None


def test_a_recorded_diagnosis_is_in_the_page_and_a_damaged_one_is_said(folder, tmp_path):
    ledger, page = Ledger.open(), tmp_path / "page.html"
    ledger.record_diagnosis("ptq", BAD)
    assert command("report", "-o", page).exit_code == 0
    assert f"ptq data-insensitive: {BAD.text}" in Page(page.read_text()).text
    artifact("ptq", "diagnosis.json").write_text("{")
    done = command("report", "-o", page)
    assert "ptq: diagnosis.json of the run 'ptq'" in done.stderr
    assert "data-insensitive" not in page.read_text()
