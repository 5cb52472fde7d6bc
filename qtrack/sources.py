"""The user's own source files: which of them an execution depends on, and a digest of what they say.

Files of site-packages, of Python and of qtrack are left out: for these, versions stand. What is found by
reading ``import`` statements is not executed for that, so that the answer is the same at any time.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NONE = "none"
OWN_FOLDER = Path(__file__).resolve().parent
EXECUTING = ("backends", "engine", "numerics", "transforms", "data.py", "recipe.py", "task.py")
FOREIGN = {"site-packages", "dist-packages"}


def defining(classes: Iterable[type]) -> set[Path]:
    """The user's own source files of some classes, and of those that they derive from."""
    return {path for cls in classes for base in cls.__mro__ if (path := _own_source(base))}


def digest_of_files(files: Iterable[Path]) -> str:
    """SHA-256 over names and texts, whatever their order; ``none`` where there are none."""
    texts = sorted((path.name, _normalized(path.read_text("utf-8", errors="replace"))) for path in files)
    if not texts:
        return NONE
    return hashlib.sha256("\0".join(part for text in texts for part in text).encode()).hexdigest()


def _own_source(cls: type) -> Path | None:
    """The file that defines a class, unless it was installed rather than written here."""
    try:
        name = inspect.getsourcefile(cls)
    except (TypeError, OSError):  # built in, or made by a program
        return None
    return _own(Path(name)) if name else None


def _own(path: Path) -> Path | None:
    """The file, if the user wrote it."""
    path = path.resolve()
    if not path.is_file() or path.suffix != ".py" or FOREIGN & set(path.parts):
        return None
    return None if any(path.is_relative_to(folder) for folder in _libraries()) else path


def imported(files: set[Path]) -> set[Path]:
    """The user's own files that these import, directly or through each other."""
    found, waiting = set(files), list(files)
    while waiting:
        new = _imports_of(waiting.pop()) - found
        found |= new
        waiting += new
    return found - files


def _imports_of(path: Path) -> set[Path]:
    try:
        tree = ast.parse(path.read_text("utf-8", errors="replace"))
    except SyntaxError:  # a notebook's export, say, that Python itself never read
        return set()
    names = {name for node in ast.walk(tree) for name in _names_in(node)}
    return {own for name in names for file in _files_of(name, path.parent) if (own := _own(file))}


def _names_in(node: ast.AST) -> Iterator[str]:
    """Dotted names that an import statement may load; those of a relative one begin with dots."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        yield module
        yield from (f"{module}{'.' if node.module else ''}{alias.name}" for alias in node.names)


def _files_of(name: str, folder: Path) -> Iterator[Path]:
    """Where a module of that name may stand: beside the file that imports it, else on Python's path."""
    bare = name.lstrip(".")
    for _ in range(len(name) - len(bare) - 1):
        folder = folder.parent
    inside = folder.joinpath(*bare.split("."))
    beside = [inside.with_suffix(".py") if bare else inside / "__init__.py", inside / "__init__.py"]
    yield from beside
    found = "." not in name and any(path.is_file() for path in beside)
    if bare and bare == name and not found and bare.partition(".")[0] not in sys.stdlib_module_names:
        yield from _on_path(bare)


def _on_path(name: str) -> Iterator[Path]:
    top = name.partition(".")[0]
    spec = _spec(top)
    if spec is None or not spec.origin or _own(Path(spec.origin)) is None:
        return
    inside = Path(spec.origin).parent.joinpath(*name.split(".")[1:])
    yield from (Path(spec.origin), inside.with_suffix(".py"), inside / "__init__.py")


def _spec(name: str) -> Any:
    try:
        return find_spec(name)
    except (ImportError, ValueError):  # a module that was made by a program, or is half imported
        return None


@cache
def _libraries() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib")
    return (OWN_FOLDER, *(Path(sysconfig.get_path(name)).resolve() for name in names))


@cache
def qtrack_digest() -> str:
    """Over those of qtrack's own files that decide what an execution comes to."""
    parts = (OWN_FOLDER / name for name in EXECUTING)
    return digest_of_files(
        file for part in parts for file in (part.rglob("*.py") if part.is_dir() else [part])
    )[:12]


def function_digest(function: Callable[..., Any]) -> str:
    """Of the file that holds a function and those that it imports; ``none`` for qtrack's own functions."""
    name = inspect.getsourcefile(inspect.unwrap(function))
    own = _own(Path(name)) if name else None
    return digest_of_files({own} | imported({own})) if own else NONE


def _normalized(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n")
