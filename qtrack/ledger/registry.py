"""Recorded models in MLflow's registry: versions of a named model, with an alias on the one that counts.

A version refers to the run's own files and copies none. Its tags say where it comes from, because whoever
meets it in the registry does not see the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from qtrack.errors import InputError, RunNotFound, StoreError
from qtrack.ledger.names import File, Tag
from qtrack.ledger.notes import version_note

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from qtrack.ledger.rows import RunRow
    from qtrack.ledger.store import Store
    from qtrack.ledger.strategy import Strategy

SCHEME = "models:/"
MAX_NAME = 250
_NAME = re.compile(r"[^\W_][\w .-]*")
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,250}")
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)
_LINEAGE = (
    *(Tag.RECIPE_DIGEST, Tag.TASK_FINGERPRINT, Tag.CAMPAIGN, Tag.STAGE),
    *(Tag.METRIC, Tag.TARGET_MET, Tag.GIT_COMMIT),
)


@dataclass(frozen=True)
class Promotion:
    """Which version an alias is on now, and which one it was on."""

    name: str
    alias: str
    version: int
    run_id: str
    stage: str
    created: bool
    """False: the run was a version already."""
    previous_version: int | None
    """None: the alias is new."""
    previous_run: str | None

    @property
    def uri(self) -> str:
        """By which MLflow and qtrack know it."""
        return f"{SCHEME}{self.name}@{self.alias}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"uri": self.uri, **asdict(self)}


def check_names(name: str, alias: str) -> None:
    """Raise InputError where MLflow, or a URI of the model, could not hold them."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME or name != name.strip():
        known = "letters, digits, spaces, dots, dashes and underscores, with a letter or digit first"
        raise InputError(f"--name {name!r} cannot name a model; it may hold {known}")
    if not _ALIAS.fullmatch(alias):
        raise InputError(f"--alias {alias!r} is none; it may hold letters, digits, dashes and underscores")
    if _RESERVED.fullmatch(alias):
        raise InputError(
            f"--alias {alias!r} is one that MLflow keeps for itself; take another, such as champion"
        )


def promote(store: Store, run: RunRow, strategy: Strategy, name: str, alias: str) -> Promotion:
    """Put the alias on the version that is the run's model, made where there is none.

    Raises StoreError where the run has no model to register.
    """
    _check_model(store, run)
    with store.calling(f"register the model {name!r}") as client:
        aliases = _aliases(client, name)
        before = client.get_model_version(name, str(aliases[alias])) if alias in aliases else None
        known = _version_of(client, name, run) if before is None or _run_of(before) != _id(run) else before
        version = known or _create(client, name, run, strategy)
        if before is None or before.version != version.version:
            client.set_registered_model_alias(name, alias, str(version.version))
    return Promotion(
        name=name,
        alias=alias,
        version=int(version.version),
        run_id=_id(run),
        stage=strategy.stage,
        created=known is None,
        previous_version=int(before.version) if before else None,
        previous_run=_run_of(before) if before else None,
    )


def run_behind(store: Store, uri: str) -> str:
    """The id of the run that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` came from."""
    name, at, alias = uri.removeprefix(SCHEME).rpartition("@")
    name, version = (name, "") if at else uri.removeprefix(SCHEME).rpartition("/")[::2]
    with store.calling(f"find {uri}") as client:
        try:
            found = (
                client.get_model_version_by_alias(name, alias)
                if at
                else client.get_model_version(name, version)
            )
        except MlflowException as error:
            raise RunNotFound(
                f"no {uri} in the registry; write models:/NAME@ALIAS or models:/NAME/VERSION"
            ) from error
    return _run_of(found)


def _check_model(store: Store, run: RunRow) -> None:
    shown = f"the run {run.name!r} ({_id(run)[:8]})"
    if run.status != "FINISHED":
        raise StoreError(f"{shown} is {run.status}; only a finished run can be promoted")
    saved = run.tags.get(Tag.MODEL, "not saved")
    if saved != "saved":
        raise StoreError(f"{shown} has no saved model: {saved}")
    with store.calling(f"list the files of {shown}") as client:
        present = {file.path for file in client.list_artifacts(_id(run), File.MODEL)}
    if f"{File.MODEL}/{File.MLMODEL}" not in present:
        raise StoreError(f"the model of {shown} is no MLflow model: it has no {File.MLMODEL}")


def _aliases(client: MlflowClient, name: str) -> Mapping[str, Any]:
    """Of the registered model, which is created where there is none."""
    try:
        found: Mapping[str, Any] = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)
        return {}
    return found


def _version_of(client: MlflowClient, name: str, run: RunRow) -> ModelVersion | None:
    """The version that is this run's model already."""
    found = client.search_model_versions(f"run_id = '{_id(run)}'")
    return next((version for version in found if version.name == name), None)


def _create(client: MlflowClient, name: str, run: RunRow, strategy: Strategy) -> ModelVersion:
    return client.create_model_version(
        name,
        source=f"runs:/{_id(run)}/{File.MODEL}",
        run_id=_id(run),
        tags=_lineage(run, strategy),
        description=version_note(strategy),
    )


def _lineage(run: RunRow, strategy: Strategy) -> dict[str, str]:
    tags = {tag: run.tags[tag] for tag in _LINEAGE if tag in run.tags}
    tags[Tag.EXPERIMENT] = strategy.experiment
    return tags | ({} if strategy.value is None else {Tag.VALUE: repr(strategy.value)})


def _run_of(version: ModelVersion) -> str:
    return str(version.run_id or "")


def _id(run: RunRow) -> str:
    return str(run.run_id)
