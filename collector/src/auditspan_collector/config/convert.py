"""Turn a read document into frozen Config structs, or say in one line which setting is wrong and what is allowed.

The structs are the only description of the settings: their fields' types, limits and defaults are followed here,
and a field's name gives its unit. ``*_bytes`` takes ``16MiB``, ``*_s`` and ``*_ms`` take ``5s`` or ``1m30s``; plain
numbers are in the unit of the name. Values of fields named token, password or secret are never shown.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import inspect

from auditspan_collector.config.document import Scalar, Section, Sequence
from auditspan_collector.errors import ConfigError

if TYPE_CHECKING:
    from auditspan_collector.config.document import Value

SECRET_NAMES: Final = ("token", "password", "secret")
HIDDEN: Final = "(hidden)"
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_SIZE_UNITS: Final = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_SHOWN = 60


def convert(section: Section, struct: type[msgspec.Struct]) -> Any:
    """An instance of *struct* from *section*. Raises ConfigError."""
    return _struct(section, inspect.type_info(struct), "")


def is_secret(name: str) -> bool:
    """Whether values of a field of this name are hidden."""
    return name in SECRET_NAMES or name.endswith(tuple(f"_{each}" for each in SECRET_NAMES))


def _struct(value: Value, info: inspect.Type, path: str) -> Any:
    assert isinstance(info, inspect.StructType)  # noqa: S101 - for the type checker
    if isinstance(value, Scalar) and value.kind == "null":
        value = Section({}, value.line)
    fields = {field.encode_name: field for field in info.fields}
    if not isinstance(value, Section):
        raise ConfigError(
            f"{path}: {_shown(value, path)}; allowed: the settings {', '.join(fields)} {_at(value)}"
        )
    for key in value.entries:
        if key not in fields:
            raise _unknown(key, list(fields), path, value.entries[key])
    arguments = {}
    for name, field in fields.items():
        inner = f"{path}.{name}" if path else name
        if name in value.entries:
            arguments[field.name] = _any(value.entries[name], field.type, inner)
        elif field.required:
            raise ConfigError(f"{inner}: missing; allowed: {describe(field.type, name)} {_at(value)}")
    try:
        return info.cls(**arguments)
    except (ConfigError, ValueError) as error:
        # A struct that judges itself knows its fields, not where in the file it stands.
        message = str(error)
        prefix = (
            f"{path}."
            if message.partition(":")[0].partition(".")[0].partition("[")[0] in fields
            else f"{path}: "
        )
        raise ConfigError(f"{prefix if path else ''}{message} {_at(value)}") from error


def _any(value: Value, info: inspect.Type, path: str) -> Any:  # noqa: PLR0911 - one a kind of type
    if isinstance(info, inspect.Metadata):
        return _any(value, info.type, path)
    if isinstance(info, inspect.StructType):
        return _struct(value, info, path)
    if isinstance(info, inspect.UnionType):
        if isinstance(value, Scalar) and value.kind == "null" and info.includes_none:
            return None
        return _any(value, _not_none(info), path)
    if isinstance(info, inspect.VarTupleType | inspect.ListType | inspect.FrozenSetType):
        if not isinstance(value, Sequence):
            raise _wrong(value, info, path)
        items = [
            _any(item, info.item_type, f"{path}[{position}]") for position, item in enumerate(value.items)
        ]
        return msgspec.convert(items, _container(info))
    if isinstance(info, inspect.DictType):
        if not isinstance(value, Section):
            raise _wrong(value, info, path)
        return {key: _any(item, info.value_type, f"{path}.{key}") for key, item in value.entries.items()}
    if not isinstance(value, Scalar):
        raise _wrong(value, info, path)
    return _scalar(value, info, path)


def _scalar(value: Scalar, info: inspect.Type, path: str) -> Any:
    found = _parsed(value, info, _name(path))
    if found is None or not _within(found, info):
        raise _wrong(value, info, path)
    return found


def _parsed(value: Scalar, info: inspect.Type, name: str) -> Any:
    """*value* as *info* asks, or None when it is no such thing."""
    text, kind = value.text, value.kind
    if isinstance(info, inspect.StrType | inspect.LiteralType):
        # A password from the environment may well look like a number.
        return text if kind == "str" or value.from_environment else None
    if isinstance(info, inspect.BoolType):
        return value.boolean() if kind == "bool" else None
    if isinstance(info, inspect.IntType | inspect.FloatType):
        number = _number(text, kind)
        if number is None and kind == "str":
            number = _with_unit(text, name)
        if number is None or isinstance(info, inspect.FloatType):
            return None if number is None else float(number)
        return int(number) if number == int(number) else None
    raise TypeError(f"no rule for settings of type {info!r}")


def _number(text: str, kind: str) -> float | int | None:
    if kind == "int":
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if kind == "float":
        number = (
            float(text.replace(".inf", "inf").replace(".nan", "nan")) if text[-1:].isalpha() else float(text)
        )
        return number if abs(number) < float("inf") else None
    return None


def _with_unit(text: str, name: str) -> float | int | None:
    if name.endswith("_bytes"):
        match = _SIZE.fullmatch(text)
        return None if match is None else round(float(match[1]) * _SIZE_UNITS[match[2]])
    if name.endswith(("_s", "_ms")):
        if not _DURATION_PART.match(text) or _DURATION_PART.sub("", text):
            return None
        seconds = sum(float(amount) * _DURATION_UNITS[unit] for amount, unit in _DURATION_PART.findall(text))
        return round(seconds * 1000, 6) if name.endswith("_ms") else seconds
    return None


def _within(found: Any, info: inspect.Type) -> bool:
    if isinstance(info, inspect.LiteralType):
        return found in info.values
    if isinstance(info, inspect.IntType | inspect.FloatType):
        return (
            (info.ge is None or found >= info.ge)
            and (info.gt is None or found > info.gt)
            and (info.le is None or found <= info.le)
            and (info.lt is None or found < info.lt)
        )
    if isinstance(info, inspect.StrType):
        return (
            (info.min_length is None or len(found) >= info.min_length)
            and (info.max_length is None or len(found) <= info.max_length)
            and (info.pattern is None or re.search(info.pattern, found) is not None)
        )
    return True


def describe(info: inspect.Type, name: str) -> str:  # noqa: PLR0911 - one a kind of type
    """What a setting of this type and name may be, in words."""
    if isinstance(info, inspect.Metadata):
        return describe(info.type, name)
    if isinstance(info, inspect.UnionType):
        return f"{describe(_not_none(info), name)}, or null"
    if isinstance(info, inspect.LiteralType):
        return "one of " + ", ".join(str(each) for each in info.values)
    if isinstance(info, inspect.BoolType):
        return "true or false"
    if isinstance(info, inspect.StrType):
        return _describe_text(info)
    if isinstance(info, inspect.IntType | inspect.FloatType):
        return _describe_number(info, name)
    if isinstance(info, inspect.DictType):
        return f"a section whose values are {describe(info.value_type, name)}"
    if isinstance(info, inspect.StructType):
        return "the settings " + ", ".join(field.encode_name for field in info.fields)
    return (
        f"a list, each of it {describe(info.item_type, name)}"
        if hasattr(info, "item_type")
        else "nothing else"
    )


def _describe_text(info: inspect.StrType) -> str:
    limits = []
    if info.min_length:
        limits.append(f"at least {info.min_length} character{'s' if info.min_length > 1 else ''}")
    if info.max_length is not None:
        limits.append(f"at most {info.max_length} characters")
    if info.pattern is not None:
        limits.append(f"matching {info.pattern}")
    return ", ".join(["text", *limits])


def _describe_number(info: inspect.IntType | inspect.FloatType, name: str) -> str:
    if name.endswith("_bytes"):
        what = "bytes, or a size such as 16MiB"
    elif name.endswith(("_s", "_ms")):
        unit = "milliseconds" if name.endswith("_ms") else "seconds"
        what = f"{unit}, or a duration such as 5s"
    else:
        what = "a whole number" if isinstance(info, inspect.IntType) else "a number"
    show = size if name.endswith("_bytes") else str
    low = (
        f"from {show(info.ge)}"
        if info.ge is not None
        else f"above {show(info.gt)}"
        if info.gt is not None
        else ""
    )
    high = (
        f"to {show(info.le)}"
        if info.le is not None
        else f"below {show(info.lt)}"
        if info.lt is not None
        else ""
    )
    limits = " ".join(part for part in (low, high) if part)
    return f"{what}, {limits}" if limits else what


def size(count: float) -> str:
    """*count* bytes as an operator would write them."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count and count % (1 << power) == 0:
            return f"{int(count) >> power}{unit}"
    return str(count)


def _wrong(value: Value, info: inspect.Type, path: str) -> ConfigError:
    hint = ""
    if isinstance(value, Scalar) and isinstance(info, inspect.StrType) and value.kind not in ("str", "null"):
        hint = "; put it in quotes if it is meant as text"
    return ConfigError(
        f"{path}: {_shown(value, path)}; allowed: {describe(info, _name(path))}{hint} {_at(value)}"
    )


def _unknown(key: str, known: list[str], path: str, value: Value) -> ConfigError:
    where = f"{path}.{key}" if path else key
    near = difflib.get_close_matches(key, known, n=1)
    suggestion = f"; did you mean {near[0]}?" if near else ";"
    return ConfigError(f"{where}: unknown{suggestion} allowed: {', '.join(known)} {_at(value)}")


def _shown(value: Value, path: str) -> str:
    if not isinstance(value, Scalar):
        return "a section" if isinstance(value, Section) else "a list"
    if any(is_secret(part) for part in re.split(r"[.\[\]]+", path)):
        return HIDDEN
    if value.kind == "null":
        return "empty"
    text = value.text if len(value.text) <= _MAX_SHOWN else value.text[:_MAX_SHOWN] + "..."
    return repr(text) if value.kind == "str" else text


def _at(value: Value) -> str:
    return f"(line {value.line})"


def _name(path: str) -> str:
    return re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]


def _not_none(info: inspect.UnionType) -> inspect.Type:
    return next(each for each in info.types if not isinstance(each, inspect.NoneType))


def _container(info: inspect.Type) -> Any:
    if isinstance(info, inspect.VarTupleType):
        return tuple
    return frozenset if isinstance(info, inspect.FrozenSetType) else list
