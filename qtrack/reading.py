"""Configuration files: read, parsed, checked against a model, and every fault told in one line.

They may come from others, so what a few bytes could make large or slow is refused before it is built: aliases
that stand for aliases, brackets within brackets, numbers of thousands of digits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

MAX_FILE_BYTES = 1_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 50
MAX_BITS = 1024
TOO_DEEP = "nested too deeply"
TOO_LONG = "a number of more than 300 digits"
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
    if len(text) > MAX_FILE_BYTES:
        raise error(f"{where}: larger than {MAX_FILE_BYTES:,} bytes; this is no configuration")
    try:
        data = _parsed(text)
        check_plain(data)
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise error(f"{where}:{place} not valid YAML: {getattr(cause, 'problem', None) or cause}") from cause
    except RecursionError:
        raise error(f"{where}: {TOO_DEEP}") from None
    except ValueError as cause:
        raise error(f"{where}: {reason_of(cause)}") from cause
    return data


def check_plain(data: Any, depth: int = 0) -> None:
    """Raise ValueError where plain data is deeper, or a number in it longer, than qtrack ever writes."""
    if depth > MAX_DEPTH:
        raise ValueError(TOO_DEEP)
    if isinstance(data, int) and data.bit_length() > MAX_BITS:
        raise ValueError(TOO_LONG)
    if isinstance(data, dict):
        for key in data:
            check_plain(key, depth + 1)
        data = list(data.values())
    for part in data if isinstance(data, list) else ():
        check_plain(part, depth + 1)


def reason_of(error: ValueError | RecursionError) -> str:
    """One line about plain data that could not be read."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return TOO_LONG if "integer string conversion" in said else said


def _parsed(text: str) -> Any:
    if text.lstrip().startswith("{"):
        with suppress(json.JSONDecodeError):  # then it is YAML in flow style
            return json.loads(text)  # YAML reads JSON's escaped pairs of surrogates as two characters
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values in a node with each alias written out; raises ValueError where they are more than any file's."""
    count = known.setdefault(id(node), None)
    if count is not None:
        return count
    parts = (
        [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    )
    count = 1
    for part in parts if isinstance(node, yaml.CollectionNode) else ():
        if known.get(id(part), 0) is None:
            raise ValueError("an alias stands for what it is part of")
        count += _expanded(part, known)
        if count > MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values")
    known[id(node)] = count
    return count


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
            said = f"{_shown(context['tag'])} is not one of {_listed(context['expected_tags'])}"
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
