import logging
from io import StringIO

from rich.console import Console

from qtrack.cli import progress
from qtrack.cli.progress import Bars, Lines, monitor


def console(terminal):
    return Console(file=StringIO(), force_terminal=terminal, width=100)


def test_away_from_a_terminal_each_stage_is_one_line():
    out = console(False)
    with monitor(out) as shown:
        assert isinstance(shown, Lines)
        for name in ("reading the data", "ptq: calibrating", "ptq: evaluating", "qat: training"):
            with shown.phase(name, 100) as advance:
                advance(50)
    assert out.file.getvalue() == "reading the data\nptq\nqat\n"


def test_away_from_a_terminal_curves_are_no_flood(monkeypatch):
    out = console(False)
    now = iter([100.0, 101.0, 112.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with monitor(out) as shown, shown.phase("qat: training", None):
        for step in (1, 2, 3):
            shown.report("train/loss", 1 / step, step)
    assert out.file.getvalue() == "qat\nqat: train/loss 1 at 1\nqat: train/loss 0.3333 at 3\n"


def test_on_a_terminal_the_phase_has_a_bar_with_the_last_value():
    out = console(True)
    with monitor(out) as shown:
        assert isinstance(shown, Bars)
        with shown.phase("qat: training [/x]", 200) as advance:
            advance(150)
            shown.report("train/loss", 0.12345, 3)
            shown.progress.refresh()
    text = out.file.getvalue()
    assert "qat: training [/x]" in text
    assert "150/200" in text
    assert "train/loss 0.1235 at 3" in text


def test_a_bar_goes_when_its_phase_ends():
    with monitor(console(True)) as shown:
        with shown.phase("a", 1):
            pass
        assert shown.progress.task_ids == []


def test_log_messages_are_shown_as_they_are():
    out = console(False)
    with monitor(out):
        logging.getLogger("qtrack").warning("layer [bold]%s[/]", "x")
    logging.getLogger("qtrack").warning("after the end")
    assert out.file.getvalue() == "layer [bold]x[/]\n"
