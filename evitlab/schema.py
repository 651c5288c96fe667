"""Frozen dataclasses <-> the plain values JSON has, with the type hints as the schema.

Hints may be bool, int, float, str, None, `Literal`, unions of these, dataclasses, tuples, and dicts
with string keys. A field that has a default may be absent, so that a record written before the
field existed still loads.
"""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from evitlab.wording import did_you_mean, shown


def encode(value: Any, where: str) -> Any:
    """A value as JSON has it: dataclasses as objects, tuples as lists, array scalars as numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encode(getattr(value, field.name), f"{where}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # NumPy's and torch's scalars
        return value.item()
    return value


def decode(value: Any, hint: Any, where: str) -> Any:
    """The typed value of a piece of JSON, or a ValueError that names where it stands."""
    if hint is Any:
        return _decode_plain(value, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _decode_dataclass(value, hint, where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(value, arguments, where)
    if origin is tuple:
        return _decode_tuple(value, arguments, where)
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        item_hint = arguments[1] if arguments else Any
        for key in value:
            if not isinstance(key, str):
                raise _mismatch(where, "string keys", key)
        return {key: decode(item, item_hint, f"{where}.{key}") for key, item in value.items()}
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _mismatch(where, "a number", value)
        return float(_finite(value, where))
    if origin is Literal:
        if value not in arguments:
            raise _mismatch(where, f"one of {', '.join(map(repr, arguments))}", value)
        return value
    if hint is int and isinstance(value, bool) or not isinstance(value, hint):
        raise _mismatch(where, hint.__name__, value)
    return value


def _decode_dataclass(value: Any, cls: type, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, f"an object ({cls.__name__})", value)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        hint = did_you_mean(unknown[0], fields)
        raise ValueError(f"{where}: unknown field {unknown[0]!r}{hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: missing field {missing[0]!r}")
    hints = get_type_hints(cls)
    return cls(**{k: decode(item, hints[k], f"{where}.{k}") for k, item in value.items()})


def _decode_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [option for option in arguments if option is not type(None)]
    for option in options[:-1]:
        try:
            return decode(value, option, where)
        except ValueError:
            continue  # the last option's message is raised if none fits
    return decode(value, options[-1], where)


def _decode_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _mismatch(where, "a list", value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise _mismatch(where, f"{len(arguments)} values", value)
    return tuple(
        decode(item, hint, f"{where}[{i}]")
        for i, (item, hint) in enumerate(zip(value, arguments, strict=True))
    )


def _decode_plain(value: Any, where: str) -> Any:
    """Any plain value; sequences become tuples, since recipes are frozen and hold tuples."""
    if isinstance(value, dict):
        return decode(value, dict[str, Any], where)
    if isinstance(value, (list, tuple)):
        return tuple(_decode_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, float):
        return _finite(value, where)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise _mismatch(where, "a plain value (number, text, bool, None, list, dict)", value)


def _finite(value: float, where: str) -> float:
    try:
        fine = math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        fine = False
    if not fine:
        raise _mismatch(where, "a finite number", value)
    return value


def _mismatch(where: str, expected: str, value: Any) -> ValueError:
    got = repr(value)
    got = got if len(got) <= 200 else f"{got[:200]}…"
    # Keys of a dict are part of the place, and may be anything.
    return ValueError(f"{shown(where, most=400)}: expected {expected}, got {got}")
