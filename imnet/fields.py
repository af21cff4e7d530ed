"""Metadata for the fields of option dataclasses: the help line, and the range of numbers that a field may hold.

``--help`` prints the help and ``check_ranges`` checks the range, so that an option is described only where it is
declared. Imports nothing but the standard library and ``imnet.errors``.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from imnet.command import suggest
from imnet.errors import UNSET, UsageError

MANY = 10**9
"""Upper limit for counts that have no better one: anything larger is a typing error."""


def check(ok: bool, got: str, allowed: str, do: str) -> None:
    """Raise ValueError in the form got / allowed / do, unless ``ok``."""
    if not ok:
        raise ValueError(f"got {got}; allowed: {allowed}; {do}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The finite numbers that a field may hold: from ``low`` to ``high``, both allowed, or between ``above`` and
    ``below``, both not allowed."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: Any) -> bool:
        return (
            _is_number(value)
            and abs(value) <= sys.float_info.max  # not NaN, not infinite, and not the whole number 10**400
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if (self.above, self.below) == (0, 1):
            return "between 0 and 1"
        if self.above == 0 and self.high is None and self.below is None:
            return "a positive number"
        if self.low is not None and self.high == MANY:
            return f"{self.low:,g} or more"
        if self.low is not None and self.high is not None:
            return f"{self.low:,} to {self.high:,}"
        told = [
            f"{self.low:,g} or more" if self.low is not None else "",
            f"above {self.above:,g}" if self.above is not None else "",
            f"at most {self.high:,g}" if self.high is not None else "",
            f"below {self.below:,g}" if self.below is not None else "",
        ]
        return ", ".join(filter(None, told)) or "a finite number"


COUNT = Range(low=1, high=MANY)
"""A number of things, at least one."""
COUNT_OR_NONE = Range(low=0, high=MANY)
SHARE = Range(low=0, high=1)
POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(low=0)
FINITE = Range()


def about(help: str, numbers: Range | None = None, *, later: bool = False) -> dict[str, Any]:
    """Metadata of a field: its line in ``--help``, the ``numbers`` that it (or each element of a tuple) may hold, and
    whether recipes gained the field ``later`` (see ``recipe_json.config_hash``)."""
    return {"help": help, "range": numbers} | ({"later": True} if later else {})


def check_ranges(value: Any, prefix: str = "") -> None:
    """Raise ValueError for the first field of a dataclass value whose number is out of range or whose type is not the
    declared one. A Literal must be one of its words, and a bool must be a bool: the string "no" would be true.

    Some values are converted in place: numpy's and torch's, which neither JSON nor YAML can write, to Python's, also
    within lists and mappings; lists to tuples; an int in a str field to a str, since YAML reads a word of digits
    (``out: 2024``) as a number; a whole float in an int field, such as 256 / 2, to an int, which torch wants; and an
    int in a float field to a float, since ``lr: 1`` in a file is the experiment of ``--lr 1.0`` and must have its hash.
    """
    for field in dataclasses.fields(value):
        kind, name = types_of(type(value))[field.name], f"{prefix}{field.name}"
        held = _converted(getattr(value, field.name), kind)
        numbers: Range | None = field.metadata.get("range")
        word = isinstance(held, str) and "Literal" in str(field.type)  # e.g. augment.mean = "image"
        if numbers is not None and held is not None and not word:
            null = ", or null" if field.default is None else ""
            for number in held if isinstance(held, tuple) else (held,):
                check(numbers.holds(number), f"{name} = {number!r}", f"{numbers}{null}", f"set --{flag(name)}")
        # An empty string comes from an unset shell variable; as a folder it would mean the current one.
        fits = _fits(held, kind) and (held != "" or field.default == "")
        if not fits:
            check(False, f"{name} = {held!r}", _words(kind), UNSET if held == "" else f"set --{flag(name)}")
        # Last, so that the errors show the number that was given.
        object.__setattr__(value, field.name, _with_fractions(held, kind))


def at_least_one(**numbers: Any) -> None:
    """UsageError for the first of the ``numbers``, by name, that is not a whole number of at least 1."""
    for name, number in numbers.items():
        if not (hasattr(number, "__index__") and number >= 1):
            raise UsageError(f"got {name} {number!r}; allowed: 1 or more", hint=f"leave {name} out")


def _converted(held: Any, kind: Any) -> Any:
    held = _plain(held)
    kinds = union_members(kind)
    if type(held) is int and str in kinds:
        return str(held)
    if type(held) is float and int in kinds and float not in kinds and held % 1 == 0:
        return int(held)
    return tuple(_converted(each, _part(kinds)) for each in held) if isinstance(held, list | tuple) else held


def _with_fractions(held: Any, kind: Any) -> Any:
    """``held`` with a float in the place of an int where ``kind`` wants one, also in a tuple."""
    kinds = union_members(kind)
    if isinstance(held, tuple):
        return tuple(_with_fractions(each, _part(kinds)) for each in held)
    wanted = type(held) is int and float in kinds and int not in kinds
    return float(held) if wanted and abs(held) <= sys.float_info.max else held


def _part(kinds: Sequence[Any]) -> Any:
    """The type of the elements, if one of ``kinds`` is a tuple's."""
    return next((typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is tuple), None)


def _plain(held: Any) -> Any:
    """``held`` with numpy's and torch's scalars and arrays as numbers and lists, also within lists and mappings."""
    if isinstance(held, list | tuple):
        return (list if isinstance(held, list) else tuple)(map(_plain, held))
    if isinstance(held, dict):
        return {name: _plain(one) for name, one in held.items()}
    return held.tolist() if hasattr(held, "tolist") else held


def misfit(held: Any, kind: Any) -> str | None:
    """None if ``held`` fits the type ``kind``, else words for the allowed values: those of the ``Range`` with which
    ``kind`` is Annotated, or of the type itself."""
    if typing.get_origin(kind) is not typing.Annotated:
        return None if _fits(held, kind) else _words(kind)
    bare, numbers = typing.get_args(kind)
    return misfit(held, bare) if numbers.holds(held) else str(numbers)


@functools.cache
def types_of(cls: type) -> dict[str, Any]:
    """The types of the fields of ``cls``. Each class is looked at once, since Python compiles every annotation."""
    return typing.get_type_hints(cls)


def _is_number(held: Any) -> bool:
    return isinstance(held, int | float) and not isinstance(held, bool)


def union_members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _fits(held: Any, kind: Any) -> bool:
    """Whether a field of type ``kind`` may hold ``held``. The content of mappings is not checked, and types other than
    plain ones, tuples, mappings and dataclasses accept anything."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin is typing.Literal:
        return isinstance(held, str | int) and held in parts
    if len(union_members(kind)) > 1:
        return any(_fits(held, part) for part in parts)
    if origin is tuple:
        kinds = parts[:1] * len(held) if isinstance(held, list | tuple) and ... in parts else parts
        return isinstance(held, list | tuple) and len(held) == len(kinds) and all(map(_fits, held, kinds))
    if kind in (int, float):
        return _is_number(held) and (kind is float or held % 1 == 0)
    if origin in (dict, Mapping):
        return isinstance(held, Mapping)
    if isinstance(kind, type) and (kind in (bool, str, types.NoneType) or dataclasses.is_dataclass(kind)):
        return isinstance(held, kind)
    return True


def _words(kind: Any) -> str:
    """A type in plain words: the words of a Literal, else its name."""
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    if len(members := union_members(kind)) > 1:
        return ", or ".join(map(_words, members))
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_words(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) in (dict, Mapping):
        return "a mapping of names to values"
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a word", types.NoneType: "null"}
    return names.get(kind) or getattr(kind, "__name__", str(kind))


def replace(value: Any, /, **changes: Any) -> Any:
    """``dataclasses.replace``, but a field that there is not is a UsageError with the nearest one."""
    known = [field.name for field in dataclasses.fields(value)]
    unknown = next((name for name in changes if name not in known), None)
    if unknown is not None:
        what = f"got unknown field {unknown} of {type(value).__name__}"
        raise UsageError(what, hint=suggest(unknown, known) or f"allowed: {', '.join(known)}")
    return dataclasses.replace(value, **changes)


def flag(name: str) -> str:
    """A field's dotted name as it is typed on the command line: with dashes, unless it contains a dot."""
    return name if "." in name else name.replace("_", "-")
