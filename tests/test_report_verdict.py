from dataclasses import replace

from report_samples import BROKEN, FALLBACK, FLOAT, PER_CHANNEL, PTQ, QAT, STRATEGIES

from qtrack.report.verdict import best, closest, sentences


def test_the_best_meets_the_target_for_sure():
    assert best(STRATEGIES) is QAT


def test_the_float_model_is_no_answer():
    assert best([FLOAT, PTQ]) is None


def test_of_those_that_meet_it_the_smallest_is_best():
    mixed = replace(QAT, stage="mixed", value=0.999, size_bytes=58_304, float_layers=3)
    assert best([mixed, QAT, PTQ]) is QAT


def test_of_equal_sizes_the_better_metric_is_best():
    assert best([replace(QAT, stage="worse", value=0.5), QAT]) is QAT


def test_the_closest_has_the_smallest_drop_at_worst():
    assert closest([PTQ, PER_CHANNEL, FALLBACK, BROKEN]) is FALLBACK


def test_it_is_said_which_is_best():
    (line,) = sentences(STRATEGIES)
    assert line == "smallest that surely meets the target: qat (drop 0.7 points, at worst 1.6; 44.1 kB)"


def test_it_is_said_that_none_is_sure():
    (line,) = sentences([FLOAT, PTQ, FALLBACK])
    assert line.startswith(
        "no strategy surely meets the target; closest: fallback (drop 1.1 points, at worst 2.1; "
    )


def test_it_is_said_that_all_fail():
    (line,) = sentences([FLOAT, PTQ, PER_CHANNEL])
    assert line.startswith("no strategy meets the target; closest: per_channel")


def test_it_is_said_that_nothing_was_quantized():
    assert list(sentences([FLOAT, BROKEN])) == ["no stage quantized anything"]
