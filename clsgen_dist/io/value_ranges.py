"""Number types with a range, and what is wrong with values that leave it.

The types are plain ``int`` and ``float`` for type checkers and for the parser; :func:`range_faults` reads the ranges.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
ClosedUnitInterval = Annotated[float, Ge(0), Le(1)]
OpenUnitInterval = Annotated[float, Gt(0), Lt(1)]
HalfOpenUnitInterval = Annotated[float, Ge(0), Lt(1)]
Port = Annotated[int, Ge(1), Le(65535)]
JaccardThreshold = Annotated[float, Ge(0.5), Lt(1)]


def range_faults(types: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """``name is value, expected range`` for each value that its type does not allow, or that is NaN or infinite.

    Args:
        types: annotations by name, as :func:`typing.get_type_hints` gives them with ``include_extras=True``.
        values: by the same names; dataclasses, lists, tuples and dictionaries are searched.
    """
    return [fault for name, kind in types.items() if name in values for fault in _faults(name, kind, values[name])]


def dataclass_range_faults(settings: Any) -> list[str]:
    """:func:`range_faults` of a dataclass's fields, those of nested ones by dotted names."""
    return range_faults(get_type_hints(type(settings), include_extras=True), vars(settings))


def range_words(kind: Any) -> str | None:
    """The range of a number type, or of those in a union, in words; None if it has none."""
    ranges = [_words(get_args(a)[1:]) for a in _alternatives(kind) if get_origin(a) is Annotated]
    return " or ".join(ranges) or None


def _faults(name: str, kind: Any, value: Any) -> Iterator[str]:
    if dataclasses.is_dataclass(value):
        hints = get_type_hints(type(value), include_extras=True)
        for field, inner in hints.items():
            yield from _faults(f"{name}.{field}", inner, getattr(value, field))
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{name} is {value}, expected a finite number"
    elif isinstance(value, (list, tuple, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for (key, item), inner in zip(items, item_kinds(kind, len(value)), strict=False):
            place = f"[{item.name!r}]" if hasattr(item, "name") else f".{key}"  # people know a stage by its name
            yield from _faults(f"{name}{place}", inner, item)
    elif isinstance(value, (int, float)) and (wanted := _wanted(kind, value)):
        yield f"{name} is {value}, expected {wanted}"


def item_kinds(kind: Any, count: int) -> tuple[Any, ...]:
    """The types of a container's items, of a dictionary's values; None where the annotation says nothing."""
    for alternative in (kind, *get_args(kind)):
        arguments = get_args(alternative)
        if get_origin(alternative) is tuple and Ellipsis not in arguments:
            return arguments
        if get_origin(alternative) in (list, tuple, dict):
            return (arguments[get_origin(alternative) is dict],) * count
    return (None,) * count


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union; an annotated type is one."""
    return (kind,) if get_origin(kind) is Annotated else get_args(kind)


def _wanted(kind: Any, value: float) -> str | None:
    """The range in words, if the value is outside it; of several alternatives, outside all of them."""
    words = []
    for alternative in _alternatives(kind):
        if get_origin(alternative) is Annotated:
            limits = get_args(alternative)[1:]
            if all(_holds(limit, value) for limit in limits):
                return None
            words.append(_words(limits))
        elif get_origin(alternative) is Literal:
            if value in get_args(alternative):
                return None
            words += map(str, get_args(alternative))
    return " or ".join(words) or None


def _holds(limit: Any, value: float) -> bool:
    if isinstance(limit, Gt):
        return value > limit.gt  # type: ignore[operator,no-any-return]
    if isinstance(limit, Ge):
        return value >= limit.ge  # type: ignore[operator,no-any-return]
    if isinstance(limit, Lt):
        return value < limit.lt  # type: ignore[operator,no-any-return]
    return not isinstance(limit, Le) or value <= limit.le  # type: ignore[operator]


def _words(limits: tuple[Any, ...]) -> str:
    match limits:
        case (Ge(low), Le(high)) if high > 1:  # type: ignore[operator]
            return f"{low} to {high}"
        case (Ge(low), Le(high)):
            return f"a share from {low:g} to {high:g}"  # type: ignore[str-bytes-safe]
        case (Ge(low), Lt(high)):
            return f"a share from {low:g} to below {high:g}"  # type: ignore[str-bytes-safe]
        case (Gt(low), Lt(high)):
            return f"a share above {low:g} and below {high:g}"  # type: ignore[str-bytes-safe]
        case (Gt(low), Le(high)):
            return f"a share above {low:g}, up to {high:g}"  # type: ignore[str-bytes-safe]
        case (Gt(low),):
            return f"more than {low}"
        case (Ge(low),):
            return f"{low} or more"
    raise TypeError(f"no words for the range {limits}")
