"""Every key that qtrack writes to MLflow, and why. Others read these names: add, never rename.

* **One run per stage, flat.** MLflow's UI collapses nested runs: tables and charts of them look empty. Runs
  of one campaign share the tag ``qtrack.campaign``; the campaign itself is one more run, of that kind.
* **Identity is a tag**, what a person filters by is a short **param**, what is measured is a **metric**.
* **Layers are steps.** One metric key with the layer's index as step gives a curve that the UI lays over
  those of other runs; a key per layer makes its chart page unusable. The table of runs shows the *last* point
  of a curve, so summaries stand beside the curves under names of their own.
* **Names differ in their first letters**, because narrow charts cut them; a prefix makes a section of the
  chart page (``layers/``, ``seconds/``, ``train/``, ``search/``), others stand under "Model metrics".
* **Values that do not apply are absent**: MLflow would store an infinity as 1.8e308.
* Whatever a list of runs needs is in tags and metrics, because reading an artifact of each run is slow.
"""

from __future__ import annotations

import posixpath
import re

from qtrack.recipe import Calibration, Dynamic, Float16, Recipe, Static, Torchao, WeightOnly


class Tag:
    """Tags of a run."""

    KIND = "qtrack.kind"
    """stage, campaign or reproduction"""
    CAMPAIGN = "qtrack.campaign"
    STAGE = "qtrack.stage"
    USE = "qtrack.use"
    """The stage's function, as the pipeline file names it; of a diagnose stage that of the remedy it took"""
    INDEX = "qtrack.index"
    PIPELINE = "qtrack.pipeline"
    RECIPE_DIGEST = "qtrack.recipe_digest"
    TASK_FINGERPRINT = "qtrack.task_fingerprint"
    """Over the digests of all splits and of the float weights: equal means that figures can be compared."""
    ARCHITECTURE = "qtrack.architecture"
    """Over names, types and shapes of the float weights: equal for two trainings of one network"""
    GIT_COMMIT = "qtrack.git_commit"
    GIT_DIRTY = "qtrack.git_dirty"
    BACKEND = "qtrack.backend"
    ENGINE = "qtrack.engine"
    DEVICE = "qtrack.device"
    """Where all that computes in float ran; absent where that was the CPU"""
    VERDICT = "qtrack.verdict"
    """Of a reproduction: bit-identical, equivalent or different; of a diagnosed stage the kind of error"""
    CAUSE = "qtrack.cause"
    """Of a diagnosed stage: what is wrong first of all; absent where nothing is"""
    REPRODUCES = "qtrack.reproduces"
    """The id of the run that a reproduction executed again"""
    HEARTBEAT = "qtrack.heartbeat"
    """When the writing process was last known to live, in UTC; a running run with an old one is dead."""
    PROCESS = "qtrack.process"
    """Host, process id and the process's start, to tell on that host if it still lives"""
    RECORD = "qtrack.record"
    """The record's own name, given before MLflow knows of the run"""
    EXECUTION = "qtrack.execution"
    """Over all that went in: a finished run with the same need not be executed again"""
    QUESTION = "qtrack.question"
    """Over all that the stage was asked with, before it wrote its recipe"""
    ORIGIN = "qtrack.origin"
    """The campaign that executed a stage which another refers to; in what is read, never in the store"""
    SWEEP = "qtrack.sweep"
    """Of a campaign: the sweep that it is a job of"""
    JOB = "qtrack.job"
    """Of a campaign: which job of its sweep it is, by content"""
    REFERS = "qtrack.refers."
    """Of a campaign: with the stage's index after it, a finished run that stands for the stage"""
    STARTED_FROM = "qtrack.started_from"
    """The stage whose recipe this one rewrote."""
    TARGET_MET = "qtrack.target_met"
    """yes, no, or not sure"""
    SEARCH = "qtrack.search"
    """Of a stage that searched: complete, budget or interrupted, as its search ended"""
    WORST_LAYER = "qtrack.worst_layer"
    MODEL = "qtrack.model"
    """saved, or not saved with the reason"""
    METRIC = "qtrack.metric"
    """The task's own name for its metric; the metric's key may be another where MLflow refuses the name."""
    MAX_DROP = "qtrack.max_drop"
    CONFIDENCE = "qtrack.confidence"
    SAMPLES = "qtrack.samples"
    """Validation samples behind the drop and its interval."""
    EXPERIMENT = "qtrack.experiment"
    """Of a registered model's version, which has no run's place in an experiment."""
    VALUE = "qtrack.value"
    """Of a registered model's version: the metric, where runs have it as one."""


class Shown:
    """Tags that give a run its place in MLflow's own UI."""

    NOTE = "mlflow.note.content"
    USER = "mlflow.user"
    SOURCE = "mlflow.source.name"
    SOURCE_TYPE = "mlflow.source.type"
    COMMIT = "mlflow.source.git.commit"
    TABLES = "mlflow.loggedArtifacts"
    CONTEXT = "mlflow.data.context"


class Metric:
    """Metrics of a stage beside the task's own."""

    DROP = "drop"
    DROP_LOW = "drop_low"
    DROP_HIGH = "drop_high"
    SQNR_DB = "sqnr_db"
    """Of the network's output."""
    SIZE_BYTES = "size_bytes"
    LATENCY_MS = "latency_ms"
    LATENCY_IQR_MS = "latency_iqr_ms"
    FLOAT_LATENCY_MS = "float_latency_ms"
    FLOAT_LAYERS = "float_layers"
    SECONDS = "seconds"
    EVALUATIONS = "evaluations"
    FORWARD_SAMPLES = "forward_samples"
    NONFINITE = "nonfinite_samples"
    DRIFTED = "drifted_ingredients"
    DIFFERING_SAMPLES = "differing_samples"
    SCALE_DIFFERENCE = "scale_difference"
    """Of a reproduction; the largest one, relative."""
    WORST_OWN_SQNR_DB = "layers/worst_own_sqnr_db"
    MEDIAN_OWN_SQNR_DB = "layers/median_own_sqnr_db"
    LAYER_CURVES = ("sqnr_db", "own_sqnr_db", "weight_sqnr_db")
    """Columns of the layer table that become the curves layers/COLUMN, with the layer's index as step."""


class File:
    """Artifacts of a run."""

    PIPELINE = "pipeline.yaml"
    """As the user wrote it."""
    RESOLVED = "pipeline_resolved.yaml"
    """As it was run: with what was set on the command line, and every default."""
    SUMMARY = "summary.json"
    ENVIRONMENT = "environment.json"
    RECIPE = "recipe.yaml"
    RECIPE_DIFF = "recipe.diff"
    LAYERS = "layers.json"
    SEARCH = "search.json"
    PRICES = "prices.json"
    """Of a ladder: what each layer costs on each rung"""
    SAMPLES = "samples.parquet"
    TEST_SAMPLES = "test_samples.parquet"
    OUTCOME = "outcome.json"
    FINGERPRINT = "fingerprint.json"
    COST = "cost.json"
    REPRODUCTION = "reproduction.json"
    DIAGNOSIS = "diagnosis.json"
    LOG = "log.txt"
    ERROR = "error.txt"
    REPORT = "report.html"
    """Of a campaign: all that its stages came to, as one page."""
    FIGURES = "figures"
    MODEL = "model"
    MLMODEL = "MLmodel"
    """In that folder: what makes it a model of MLflow's."""


STAGE, CAMPAIGN, REPRODUCTION = "stage", "campaign", "reproduction"
TARGET_MET = {True: "yes", False: "no", None: "not sure"}

MAX_KEY = 250
_OWN = {value for name, value in vars(Metric).items() if name.isupper() and isinstance(value, str)}


def metric_key(name: str) -> str:
    """The name with whatever MLflow refuses in a metric's key replaced, so that it stays readable."""
    cleaned = re.sub(r"[^\w/. -]", "_", name)
    parts = [part for part in posixpath.normpath(cleaned).split("/") if part.strip(". ")]
    return "/".join(parts)[:MAX_KEY].rstrip("/") or "metric"


def task_metric_key(name: str) -> str:
    """The key of a metric that the task names, apart from qtrack's own."""
    key = metric_key(name)
    return f"task/{key}" if key in _OWN else key


def test_metric_key(name: str) -> str:
    """The same metric on the test split."""
    return task_metric_key(f"test_{name}")


def params_of(recipe: Recipe, calibration_samples: int) -> dict[str, str]:
    """What a person filters and sorts by; what has no effect in the recipe's mode is left out."""
    weight = getattr(recipe.default, "weight", None)
    activation = getattr(recipe.default, "activation", None)
    params = {"mode": recipe.default.mode, "bits": _bits(recipe), "seed": str(recipe.seed)}
    if weight is not None:
        params |= {"granularity": weight.granularity, "weight_observer": weight.observer.kind}
    if activation is not None:
        params |= {"activation_observer": activation.observer.kind, "qat_epochs": "0"}
        params |= {"reduce_range": str(activation.reduce_range).lower()}
        params |= _calibration(recipe.calibration, calibration_samples)
    if recipe.transforms:
        params["transforms"] = "+".join(transform.kind for transform in recipe.transforms)
    if recipe.training is not None:
        params["qat_epochs"] = str(recipe.training.epochs)
    return params


def _calibration(chosen: Calibration, available: int) -> dict[str, str]:
    """How many samples of the training data there are is not known here."""
    if chosen.source == "training":
        return {"calibration_samples": str(chosen.samples or "all"), "calibration_source": "training"}
    return {"calibration_samples": str(min(chosen.samples or available, available))}


def _bits(recipe: Recipe) -> str:
    """w8a8: weights and activations of 8 bits; w8: activations in float."""
    match recipe.default:
        case Static(weight=weight, activation=activation):
            return f"w{weight.bits}a{activation.bits}"
        case Dynamic(weight=weight):
            return f"w{weight.bits}a8"
        case WeightOnly(weight=weight):
            return f"w{weight.bits}"
        case Float16():
            return "w16"
        case Torchao():
            return "torchao"
    return "w32"
