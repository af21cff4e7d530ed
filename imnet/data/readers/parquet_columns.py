"""Finds the columns of pictures and labels of a Parquet file, and the class names in its metadata."""

from __future__ import annotations

import json
from typing import Any

from imnet.errors import DataError

_IMAGES = ("image", "img", "jpg", "png", "picture")
_LABELS = ("label", "labels", "fine_label", "cls", "class")


def image_column(schema: Any, file: str, wanted: str | None = None) -> tuple[str, list[str]]:
    """(column of pictures, other columns of pictures); the first is ``image.bytes`` for a struct, or a binary column.

    Of several columns, ``wanted`` is taken, or the only one with a usual name. DataError if that leaves no choice.
    """
    columns = dict(filter(None, (_pictures(field) for field in schema)))
    if wanted is not None and wanted not in columns:
        got = ", ".join(columns) or ", ".join(schema.names)
        raise DataError(f"no column of pictures {wanted!r}; it has {got[:200]}", file=file)
    if not columns:
        what = f"no column of pictures (image: struct<bytes, path> or binary); it has {_types(schema)}"
        raise DataError(what, file=file)
    usual = [name for name in columns if name in _IMAGES]
    chosen = [wanted] if wanted is not None else list(columns) if len(columns) == 1 else usual
    if len(chosen) != 1:
        what = f"{len(columns)} columns of pictures: {', '.join(columns)}"
        raise DataError(what, file=file, hint=f"choose one: imnet-data pack --image-key {(usual or list(columns))[0]}")
    return columns[chosen[0]], [name for name in columns if name != chosen[0]]


def _pictures(field: Any) -> tuple[str, str] | None:
    """(name, path of the bytes) if ``field`` is a column of pictures, else None."""
    import pyarrow.types as kinds

    def binary(kind: Any) -> bool:
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    if "." in field.name:
        return None
    if kinds.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return (field.name, f"{field.name}.bytes") if binary(field.type.field("bytes").type) else None
    return (field.name, field.name) if field.name in _IMAGES and binary(field.type) else None


def label_column(schema: Any, file: str) -> tuple[str, list[str]]:
    """(column of labels, other columns that may have labels): integers or words, perhaps dictionary-encoded."""
    import pyarrow.types as kinds

    found = []
    for name in _LABELS:
        at = schema.get_field_index(name)
        if at < 0:
            continue
        kind = schema.field(at).type
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        if kinds.is_integer(kind) or kinds.is_string(kind) or kinds.is_large_string(kind):
            found.append(name)
    if found:
        return found[0], found[1:]
    what = f"no column {' or '.join(_LABELS[:3])} of integers or words; it has {_types(schema)}"
    raise DataError(what, file=file)


def _types(schema: Any) -> str:
    return ", ".join(f"{field.name}: {str(field.type)[:40]}" for field in schema)[:200]


def class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The ClassLabel names that the ``datasets`` library stores in the schema's metadata; () if there are none."""
    raw = (schema.metadata or {}).get(b"huggingface", b"")
    try:
        names = json.loads(raw)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
