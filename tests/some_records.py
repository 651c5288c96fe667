"""A record of each class, made from its type hints."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from evitlab import records
from evitlab.records import Record

RECORDS: list[type[Any]] = [
    one
    for one in map(records.__dict__.get, sorted(records.__all__))
    if isinstance(one, type) and issubclass(one, Record) and one is not Record
]


def one_of(hint: Any) -> Any:
    """A value of a type: the smallest that has something in it."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return hint(**{one.name: one_of(hints[one.name]) for one in dataclasses.fields(hint)
                       if one.init})  # fmt: skip
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return one_of(arguments[0])
    if origin is Literal:
        return arguments[0]
    if origin is tuple:
        kinds = arguments[:1] if arguments[1:] == (...,) else arguments
        return tuple(map(one_of, kinds))
    if origin is dict or hint is dict:
        return {"key": one_of(arguments[1]) if arguments else 1}
    plain: dict[Any, Any] = {int: 1, float: 0.5, str: "text", bool: True, type(None): None, Any: 1}
    return plain[hint]
