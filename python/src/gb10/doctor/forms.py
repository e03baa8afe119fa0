"""Frozen dataclasses as JSON, and back: what a field's type does not allow is refused with its place."""

import json
import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Form = TypeVar("Form")
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON of a dataclass."""
    return json.dumps(asdict(value), indent=indent)


def loads(form: type[Form], text: str) -> Form:
    """The dataclass that JSON says. Raises ValueError for text that is no JSON, or says another thing."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("its brackets go too deep") from None
    return read(form, value)


def read(form: type[Form], value: Any) -> Form:
    """The dataclass that a JSON object says. Raises ValueError with the place of what does not fit."""
    made: Form = _read(form, value, "")
    return made


def _refuse(place: str, wanted: str) -> ValueError:
    return ValueError(f"{place or 'the whole'} is not {wanted}")


def _record(form: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _refuse(place, "an object")
    hints = get_type_hints(form)
    before = f"{place}." if place else ""
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"{before}{unknown[0]} is no field that is known")
    for field in fields(form):
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{before}{field.name} is missing")
    return form(**{name: _read(hints[name], one, before + name) for name, one in value.items()})


def _tuple(parts: tuple[Any, ...], value: Any, place: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _refuse(place, "a list")
    if parts[-1] is Ellipsis:
        parts = (parts[0],) * len(value)
    if len(parts) != len(value):
        raise _refuse(place, f"a list of {len(parts)}")
    return tuple(
        _read(part, one, f"{place}.{n}") for n, (part, one) in enumerate(zip(parts, value, strict=True))
    )


def _read(form: Any, value: Any, place: str) -> Any:
    if is_dataclass(form):
        return _record(form, value, place)
    origin, parts = get_origin(form), get_args(form)
    if origin in (Union, types.UnionType):
        some = [part for part in parts if part is not type(None)]
        if value is None and len(some) < len(parts):
            return None
        return _read(some[0], value, place)
    if origin is tuple:
        return _tuple(parts, value, place)
    if origin is dict:
        if not isinstance(value, dict):
            raise _refuse(place, "an object")
        return {name: _read(parts[1], one, f"{place}.{name}") for name, one in value.items()}
    fits = type(value) is form or (form is float and type(value) is int)
    if not fits:
        raise _refuse(place, _NAMES[form])
    return value
