"""The pages that ``qtrack ui`` links to, in a browser: on the example store and on a new campaign."""

from dataclasses import dataclass

import pytest

from qtrack.cli.server import serving
from qtrack.ledger import Ledger, Strategy
from qtrack.ledger.store import sqlite_uri

pytest_plugins = ("browser", "example_store", "recorded_store")
pytestmark = pytest.mark.slow

FIRST_CHARTS = ("accuracy", "drop", "size_bytes", "latency_ms")
TEXT = "texts => texts.every(text => document.body.innerText.includes(text))"
DRAWN = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(
  plot => (plot.data || []).map(line => ({name: line.name, x: [...line.x], y: [...line.y]})))"""
BARS = "runs => [...document.querySelectorAll('.js-plotly-plot')].filter(" + (
    "plot => plot.data && plot.data[0].type === 'bar' && plot.data[0].y.length === runs).length === 4"
)


@dataclass(frozen=True)
class Site:
    """A store with a server on it."""

    name: str
    address: str
    ledger: Ledger
    strategies: list[Strategy]
    links: dict[str, str]

    @property
    def stages(self):
        return [strategy.stage for strategy in self.strategies]


@pytest.fixture(scope="module")
def fresh(recorded):
    with serving(sqlite_uri(recorded[0] / "mlflow.db")) as (address, _):
        yield address


@pytest.fixture(scope="module", params=["example", "fresh"])
def site(request, visiting):
    address = request.getfixturevalue({"example": "served", "fresh": "fresh"}[request.param])
    ledger = Ledger.open(address)
    strategies = ledger.strategies()
    return Site(
        request.param, address, ledger, strategies, ledger.links(strategies) | ledger.share_views(strategies)
    )


@pytest.fixture
def visitor(visiting, site):
    """Whatever it visits, it must not hear of errors or be sent to another host."""
    visitor = visiting(site.address)
    yield visitor
    visitor.page.close()
    assert visitor.foreign == []
    assert visitor.errors == []


@pytest.mark.parametrize("name", ["table", "charts", "artifacts", "compare", "layers"])
def test_a_linked_page_shows_every_stage(site, visitor, name):
    page = visitor.open(site.links[name])
    page.wait_for_function(TEXT, arg=site.stages)
    page.wait_for_timeout(3000)  # for what it fetches afterwards
    visitor.keep(f"{site.name}-{name}")


def test_the_charts_draw_what_one_decides_by_for_all_strategies(site, visitor):
    page = visitor.open(site.links["charts"])
    page.wait_for_function(BARS, arg=len(site.strategies))
    page.wait_for_function(TEXT, arg=list(FIRST_CHARTS))
    visitor.keep(f"{site.name}-charts")
    runs = {strategy.run_id for strategy in site.strategies}
    assert [set(chart["y"]) for chart in page.evaluate(DRAWN)] == [runs] * len(FIRST_CHARTS)


def test_the_table_has_the_columns_that_one_decides_by(site, visitor):
    page = visitor.open(site.links["table"])
    page.wait_for_function(TEXT, arg=[*site.stages, "accuracy", "drop", "drop_low", "size_bytes", "Created"])


def test_the_overlay_has_a_point_for_every_layer(site, visitor):
    page = visitor.open(site.links["layers"])
    page.wait_for_selector(".js-plotly-plot .trace")
    drawn = {line["name"]: line["x"] for line in page.evaluate(DRAWN)}
    assert drawn.keys() == measured_layers(site).keys()
    for stage, layers in measured_layers(site).items():
        assert drawn[stage] == layers


def measured_layers(site):
    """The indices of layers that have an error of their own, by stage; stages without any are left out."""
    tables = {strategy.stage: site.ledger.layers(strategy.run_id) for strategy in site.strategies}
    found = {
        stage: [row["index"] for row in rows if row["own_sqnr_db"] is not None]
        for stage, rows in tables.items()
    }
    return {stage: layers for stage, layers in found.items() if layers}


def test_the_artifact_table_compares_all_layers_of_all_stages(site, visitor):
    visitor.page.set_viewport_size({"width": 3000, "height": 6000})  # it draws only what is in sight
    page = visitor.open(site.links["artifacts"])
    tables = [site.ledger.layers(strategy.run_id) for strategy in site.strategies]
    rows = [row for table in tables for row in table]
    values = [repr(row["own_sqnr_db"]) for row in rows if row["own_sqnr_db"] is not None]
    page.wait_for_function(TEXT, arg=["layers.json", *site.stages, *(row["layer"] for row in rows), *values])


def test_a_runs_page_says_what_came_out_and_what_to_do_next(site, visitor):
    run = site.strategies[1]
    page = visitor.open(f"{site.links['table'].partition('?')[0]}/{run.run_id}")
    page.wait_for_function(
        TEXT, arg=[f"accuracy {run.value:.4f}", f"qtrack layers {run.campaign}/{run.stage}"]
    )
    visitor.keep(f"{site.name}-run")
