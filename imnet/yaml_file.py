"""Reads and writes YAML: configuration files, grids, values on a command line. Only plain values, as in JSON.

Duplicate names, values that contain themselves and invalid YAML are a UsageError of one line. A date stays text, since
no option takes a date; so do 007, 1_000, 0x10 and 12:30, which YAML 1.1 would read as numbers. ``1e-3`` is a number, as
in JSON and in YAML 1.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from imnet.errors import UsageError
from imnet.files import is_file

NOT_PLAIN = ("timestamp", "binary", "set", "omap", "pairs")
"""YAML types that no option takes."""
FRACTION = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
"""Fractions. YAML 1.1, and so PyYAML, requires a point and a sign in the exponent, and takes 1:30.5 for 90.5."""

_MOST_VALUES = 1_000_000
WHOLE = re.compile(r"-?(0|[1-9]\d*)$")
"""Whole numbers, as in JSON."""


class _Plain(yaml.SafeLoader):
    """A loader without the types of ``NOT_PLAIN``, which refuses duplicate names in a mapping."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if str(tag).rpartition(":")[2] not in NOT_PLAIN
    }
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        first: [row for row in rows if not row[0].endswith((":timestamp", ":int", ":float"))]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} is given twice in one mapping, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


class _Writer(yaml.SafeDumper):
    """A dumper that quotes text which ``_Plain`` would read as a number."""


_Plain.add_implicit_resolver("tag:yaml.org,2002:int", WHOLE, list("-0123456789"))
for kind in (_Plain, _Writer):
    kind.add_implicit_resolver("tag:yaml.org,2002:float", FRACTION, list("-+.0123456789"))


def parse(text: str, file: str | Path | None = None) -> Any:
    """The value of ``text``; a UsageError names ``file``."""
    return _load(text, file)[0]


def dump(values: Any) -> str:
    """The text that ``parse`` reads as ``values``."""
    return yaml.dump(values, Dumper=_Writer, sort_keys=False, allow_unicode=True, stream=None)


def read(path: str | Path) -> tuple[Any, list[tuple[str, int]]]:
    """(value of the file, [(dotted name, line number from 1)]). The file is read only once, since it may be a pipe."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        inside = Path(path) / "config.yaml"  # as a run folder has it
        hint = f"give the file in it: {inside}" if is_file(inside) else "give a readable YAML file"
        raise UsageError(f"cannot be read: {error.strerror}", file=path, hint=hint) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"not YAML: {error}", file=path, hint="write it in UTF-8") from error
    value, node = _load(text, path)
    return value, list(_key_lines(node)) if isinstance(value, dict) else []


def _load(text: str, file: str | Path | None) -> tuple[Any, Any]:
    """(value, YAML node from which it was built)."""
    try:
        loader = _Plain(text)
        node = loader.get_single_node()
        if node is not None and _size(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES} values")
        value = None if node is None else loader.construct_document(node)
        json.dumps(value)  # fails for a value that contains itself
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        told = "a value does not fit its type (!!)" if isinstance(error, LookupError) else str(error)
        why = " ".join(told.split()).replace('"<unicode string>", ', "")
        raise UsageError(f"not YAML of plain values: {why}", file=file) from error
    return value, node


def _size(node: Any, known: dict[int, int]) -> int:
    """The number of values in a YAML node, each as often as aliases repeat it: a few lines can stand for billions."""
    if id(node) not in known:
        known[id(node)] = 1  # counted once if the node contains itself, which is refused later
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = (part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] += sum(_size(part, known) for part in parts)
    return known[id(node)]


def _key_lines(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _key_lines(value, f"{name}.")
        else:
            yield name, key.start_mark.line + 1
