"""``qtrack prices`` on a recorded ladder, and the look of its table."""

from __future__ import annotations

import json
import sys

import pytest
import tiny
import torch
import yaml
from prices_made import chain
from recorded_tiny import PIPELINE, artifact, command, edited, write_task
from test_report_tables import same_as_golden

import qtrack
from qtrack.numerics import timing
from qtrack.report.prices import prices
from qtrack.sensitivity import prices as measuring


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """One with a ladder, recorded, in its folder."""
    folder = tmp_path_factory.mktemp("ladder")
    write_task(folder)
    torch.set_num_threads(1)
    stages = ["float", "ptq", {"ladder": {"max_size_kb": 2.5}}]
    (folder / "ladder.yaml").write_text(yaml.safe_dump({**PIPELINE, "stages": stages}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "tiny", tiny)
        patch.setattr(timing, "ROUNDS", 2)
        patch.setattr(measuring, "KINDS", ("per_channel",))
        return folder, qtrack.run("ladder.yaml")


@pytest.fixture
def results(campaign, monkeypatch):
    monkeypatch.chdir(campaign[0])
    monkeypatch.setitem(sys.modules, "tiny", tiny)
    return campaign[1]


def test_the_table_looks_as_it_did():
    same_as_golden("prices.txt", prices(chain().rows({"b": "float"})))


def test_the_recorded_table_is_shown_and_its_choice_is_what_ran(results):
    done = command("prices", "ladder")
    assert done.exit_code == 0, done.output
    assert "block.add" in done.stdout
    assert "predicted: " in done.stderr
    rows = json.loads(command("prices", "ladder", "--json").stdout)
    chosen = {row["layer"]: row["rung"] for row in rows if row["chosen"] and row["dtype"]}
    moved = {name for name, rung in chosen.items() if rung != "recipe"}
    overrides = results[2].outcome.recipe.overrides
    assert moved == {override.layer or override.call for override in overrides}
    tables = qtrack.Ledger.open().tags(qtrack.Ledger.open().strategies(["ladder"]))
    assert "prices.json" in str(tables)


def test_a_run_without_prices_says_who_has_them(results):
    done = command("prices", "ptq")
    assert done.exit_code == 3
    assert "has no prices: a ladder stage measures them" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_damaged_table_is_refused_in_a_line(results):
    path = artifact("ladder", "prices.json")

    def damage(data):
        data["data"][0][5] = "dear"

    with edited(path, damage):
        done = command("prices", "ladder")
    assert done.exit_code != 0
    assert "prices.json of the run 'ladder'" in done.stderr
    assert "row 0, milliseconds" in done.stderr


def test_a_second_run_refers_to_the_ladder_and_measures_nothing(results, monkeypatch):
    monkeypatch.setattr(measuring, "prices", None)
    assert all(result.known for result in qtrack.run("ladder.yaml"))
    assert command("prices", "ladder").exit_code == 0
