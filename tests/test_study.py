"""What Optuna is asked and told, through its door."""

import logging

import numpy as np
import pytest

from qtrack.errors import StoreError
from qtrack.recipe import Recipe
from qtrack.search.space import space_of
from qtrack.search.study import STARTUP, Study

SPACE = space_of(Recipe(engine="x86"))
WORTH = {"per_channel": 0.5, "per_tensor": 0.0}


def study(path=None, seed=0, costs=0):
    return Study(path, SPACE, costs, seed)


def worth(params):
    return WORTH[params["granularity"]] + 0.2 * params["equalize"] + 0.1 * (params["observer"] == "min_max")


def tried(study, count):
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(trial.params)
        trial.end("complete", {"value": worth(trial.params)}, [worth(trial.params)])
    return found


def test_the_same_seed_proposes_the_same_and_another_does_not():
    first, second, other = tried(study(), 12), tried(study(), 12), tried(study(seed=1), 12)
    assert first == second
    assert first != other


def test_a_study_goes_on_as_if_it_had_not_been_interrupted(tmp_path):
    whole = tried(study(), 12)
    path = tmp_path / "deep" / "k.study.log"
    resumed = tried(study(path), 7)
    again = study(path)
    assert [one.params for one in again.ended] == resumed
    assert [one.facts["value"] for one in again.ended] == [worth(params) for params in resumed]
    assert resumed + tried(again, 5) == whole


def test_a_batch_is_the_same_whether_it_was_interrupted_or_not(tmp_path):
    def end(trials):
        for trial in trials:
            trial.end("complete", {"value": worth(trial.params)}, [worth(trial.params)])
        return [trial.params for trial in trials]

    whole, path = study(), tmp_path / "k.study.log"
    points = [point for _ in range(3) for point in end(whole.batch(4))]
    before = study(path)
    done = end(before.batch(4)) + end(before.batch(4)[:1])
    after = study(path)
    assert len(after.batch(4)) == 3
    again = study(path)
    assert done + end(again.batch(4)) + end(again.batch(4)) == points


def test_the_points_of_a_batch_are_not_all_the_same():
    asked = study()
    tried(asked, 2 * STARTUP + 2)
    batch = [str(sorted(trial.params.items())) for trial in asked.batch(6)]
    assert len(set(batch)) > 3


def test_a_trial_that_came_to_nothing_is_proposed_again(tmp_path):
    whole, path = tried(study(), 8), tmp_path / "k.study.log"
    interrupted = study(path)
    tried(interrupted, 6)
    interrupted.ask()
    resumed = study(path)
    assert len(resumed.ended) == 6
    assert tried(resumed, 2) == whole[6:]


def test_later_trials_learn_from_earlier_ones():
    later = tried(study(), 40)[20:]
    assert np.mean([worth(params) for params in later]) > np.mean([worth(p) for p in tried(study(), 5)])


def test_points_may_be_the_first_once():
    wanted = {"granularity": "per_channel", "equalize": True, "observer": "percentile", "quantile": 0.99}
    wanted |= {"samples": 16, "choice": "typical", "reduce_range": False, "bias_correction": False}
    asked = study()
    asked.first([wanted])
    found = tried(asked, 2)
    assert found[0] == wanted
    assert found[1] != wanted
    asked.first([wanted])
    assert tried(asked, 1)[0] != wanted


def test_a_trial_behind_the_median_of_the_others_is_told_to_stop():
    asked, good, bad = study(), np.ones(100), np.zeros(100)
    for _ in range(STARTUP):
        trial = asked.ask()
        assert not trial.behind(good, 100)
        trial.end("complete", {}, [1.0])
    trial = asked.ask()
    assert not trial.behind(bad[:24], 100)
    assert trial.behind(bad[:25], 100)
    assert not trial.behind(bad[:26], 100)  # until the next part
    assert trial.behind(bad[:50], 100)
    assert not trial.behind(bad, 100)  # too late to save anything
    assert not asked.ask().behind(good[:25], 100)


def test_costs_are_objectives_as_well():
    asked = study(costs=1)
    for _ in range(STARTUP + 2):
        trial = asked.ask()
        trial.end("complete", {}, [1.0, 2.0])
    asked.ask().end("failed", {"error": "it broke"})
    asked.ask().end("again", {})
    assert [one.how for one in asked.ended][-3:] == ["complete", "failed", "again"]


def test_a_file_of_another_kind_is_replaced(tmp_path, caplog):
    path = tmp_path / "k.study.log"
    path.write_text("what is this\n[]\n")
    assert len(tried(study(path), 2)) == 2
    assert len(study(path).ended) == 2
    assert "cannot be used" in caplog.text


def test_where_no_file_can_be_the_trials_are_in_memory(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert len(tried(study(tmp_path / "file" / "k.study.log"), 2)) == 2
    assert "the trials are kept in memory" in caplog.text


def test_a_file_that_can_no_longer_be_written_is_an_error_of_one_line(tmp_path):
    path = tmp_path / "k.study.log"
    asked = study(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=r"k.study.log cannot be written: Is a directory"):
        tried(asked, 1)


def test_a_trial_left_twice_waits_once(tmp_path):
    path = tmp_path / "k.study.log"
    study(path).ask()
    study(path)
    resumed = study(path)
    first, second = tried(resumed, 2)
    assert first != second


def test_optuna_says_nothing(capfd, caplog):
    caplog.set_level(logging.DEBUG)
    tried(study(), STARTUP + 2)
    assert capfd.readouterr() == ("", "")
    assert "optuna" not in {record.name.partition(".")[0] for record in caplog.records}
