"""What the backends make of each operator, and that the layer comparison covers what they compute anew."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from qtrack.backends import operators
from qtrack.backends.capabilities import CAPABILITIES, missing
from qtrack.backends.engines import default_engine
from qtrack.backends.operators import OPERATORS, Trial, trials
from qtrack.cli import main

SKIPPED_BY_SHADOWS = ("x + y", "x * y", "torch.cat", "AvgPool2d", "AdaptiveAvgPool2d")
REFUSED_BY_SHADOWS = (
    *("ConvTranspose2d", "Hardswish", "LeakyReLU", "ELU", "LSTM", "LayerNorm", "F.hardswish", "F.leaky_relu"),
)


def some(monkeypatch, *names):
    chosen = tuple(operator for operator in OPERATORS if operator.name in names)
    monkeypatch.setattr(operators, "OPERATORS", chosen)
    monkeypatch.setattr("qtrack.report.operators.OPERATORS", chosen)


def test_there_are_as_many_as_promised():
    assert len({operator.name for operator in OPERATORS}) == len(OPERATORS) >= 40


@pytest.mark.slow
def test_what_torchs_shadow_comparison_skips_or_refuses_is_compared(monkeypatch):
    some(monkeypatch, *SKIPPED_BY_SHADOWS, *REFUSED_BY_SHADOWS)
    found = {trial.operator: trial for trial in trials("fx")}
    assert found.keys() == {*SKIPPED_BY_SHADOWS, *REFUSED_BY_SHADOWS}
    assert all(trial.modes and not trial.refused for trial in found.values())


def test_functions_with_weights_of_their_own_are_compared(monkeypatch):
    some(monkeypatch, "F.linear")
    (trial,) = trials("fx")
    assert trial.modes == ("static",)


def test_what_torch_cannot_convert_is_refused_with_its_reason(monkeypatch):
    some(monkeypatch, "F.conv2d")
    (trial,) = trials("fx")
    assert str(trial) == "static refused"
    assert "conv2d_prepack" in trial.refused["static"]


@pytest.mark.parametrize(
    ("name", "otherwise"), [("ReLU", "fused"), ("MaxPool2d", "passes"), ("GELU", "float"), ("x - y", "float")]
)
def test_what_has_no_line_is_fused_or_passes_or_stays_float(monkeypatch, name, otherwise):
    some(monkeypatch, name)
    assert [str(trial) for trial in trials("fx")] == [otherwise]


def test_what_passes_gives_what_it_would_give_in_float(monkeypatch):
    """The claim behind ``passes``: on values of the quantized grid, the operator is exact to the bit."""
    x = torch.quantize_per_tensor(torch.randn(2, 4, 6, 6), 0.05, 128, torch.quint8)
    for function in (
        F.relu,
        lambda t: F.max_pool2d(t, 2),
        lambda t: t.flatten(1),
        lambda t: t.transpose(1, 2),
    ):
        assert torch.equal(function(x).dequantize(), function(x.dequantize()))


def test_the_command_prints_a_column_for_each_backend_that_is_here(monkeypatch):
    some(monkeypatch, "Linear", "F.conv2d")
    done = CliRunner().invoke(main, ["doctor", "--operators"])
    assert done.exit_code == 0, done.output
    heading, _, first, second = done.stdout.splitlines()[:4]
    assert heading.split() == ["operator", *(name for name in CAPABILITIES if not missing(name))]
    assert first.startswith("Linear")
    assert "static refused" in second
    assert "fx, F.conv2d: torch.ao could not convert" in done.stderr


def test_json_holds_modes_and_reasons(monkeypatch):
    some(monkeypatch, "F.conv2d")
    done = CliRunner().invoke(main, ["doctor", "--operators", "--json"])
    (fx,) = [record for record in json.loads(done.stdout) if record["backend"] == "fx"]
    assert fx["modes"] == []
    assert list(fx["refused"]) == ["static"]


@pytest.mark.slow
@pytest.mark.skipif(default_engine() != "x86", reason="the table on record is of the engine x86")
def test_the_table_on_record_is_what_the_backends_do():
    """``qtrack doctor --operators > tests/golden/operators.txt`` makes it anew."""
    done = CliRunner().invoke(main, ["doctor", "--operators"])
    assert done.stdout == (Path(__file__).parent / "golden" / "operators.txt").read_text()


def test_a_trial_says_what_happened_in_few_words():
    assert str(Trial("x", "fx", ("static", "dynamic"), {}, "float")) == "static, dynamic"
    assert str(Trial("x", "fx", (), {"static": "why"}, "float")) == "static refused"
    assert str(Trial("x", "fx", (), {}, "passes")) == "passes"
