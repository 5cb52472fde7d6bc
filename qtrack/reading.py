"""Configuration files: read, parsed, checked against a model, and every fault told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

MAX_FILE_BYTES = 1_000_000
Model = TypeVar("Model", bound=BaseModel)


def read_text(path: Path, error: Callable[[str], Exception]) -> str:
    """The text of a small configuration file, or one line about why there is none."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise error(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; this is not a configuration file")
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise error(f"{path}: {cause.strerror or cause}") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path}: not a text file in UTF-8") from cause


def load_yaml(text: str, where: str, error: Callable[[str], Exception]) -> Any:
    """Parse YAML of plain data, or JSON; tags that would build Python objects are refused."""
    if text.lstrip().startswith("{"):
        with suppress(json.JSONDecodeError):  # then it is YAML in flow style
            return json.loads(text)  # YAML reads JSON's escaped pairs of surrogates as two characters
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise error(f"{where}:{place} not valid YAML: {getattr(cause, 'problem', None) or cause}") from cause


def parse(model: type[Model], data: Any, where: str, error: Callable[[Sequence[str]], Exception]) -> Model:
    """Validate data against a model; raises the given error with a line for every fault."""
    try:
        return model.model_validate(data)
    except ValidationError as cause:
        raise error(faults_of(cause, model, where)) from cause


def faults_of(error: ValidationError, model: type[BaseModel], where: str) -> list[str]:
    """One readable line per fault: path in the file, what was wrong, what would do."""
    return [_fault(detail, model, where) for detail in error.errors(include_url=False)]


def _fault(detail: Any, model: type[BaseModel], where: str) -> str:
    steps, owner = _walk(model, detail["loc"])
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    context, value = detail.get("ctx", {}), _shown(detail.get("input"))
    match detail["type"]:
        case "extra_forbidden":
            said = f"unknown field; known fields are {', '.join(owner.model_fields)}"
        case "missing":
            said = "is missing"
        case "union_tag_invalid":
            said = f"{context['tag']!r} is not one of {_listed(context['expected_tags'])}"
        case "literal_error":
            said = f"{value} is not one of {_listed(context['expected'])}"
        case "value_error":
            said = str(context["error"])
        case _:
            said = f"{value}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
    return f"{where}: {path}: {said}" if path else f"{where}: {said}"


def _walk(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[int | str], type[BaseModel]]:
    """A fault's path without the names of union variants, and the model that its last field stands in."""
    steps: list[int | str] = []
    owner, candidates = model, [model]
    for step in location:
        variant = next((candidate for candidate in candidates if _tag(candidate) == step), None)
        if variant is not None:
            candidates = [variant]
            continue
        steps.append(step)
        if isinstance(step, str) and candidates:
            owner = candidates[0]
            field = owner.model_fields.get(step)
            candidates = list(_models_in(field.annotation)) if field else []
    return steps, owner


def _tag(model: type[BaseModel]) -> Any:
    """The name of a variant of a union: the default of the field that tells variants apart."""
    tag = getattr(model, "tag", None)
    return model.model_fields[tag].default if tag else None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _listed(names: str) -> str:
    return names.replace("'", "").replace(" or ", ", ")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
