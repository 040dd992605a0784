"""Describe every setting from the structs that define it: docs/configuration.md is this module's output."""

from __future__ import annotations

import inspect as python_inspect
import itertools
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import inspect

from auditspan_collector.config.convert import describe, is_secret, size

if TYPE_CHECKING:
    from collections.abc import Iterator

# Defaults that depend on the machine.
_DEFAULTS: Final = {
    "collector.name": "the host's name",
    "spool.path": "`spool` in the data folder",
    "store.path": "`store` in the data folder",
}
# What a struct's docstring takes for granted.
_WORDS: Final = {
    "store.users[].name": "Who asks.",
    "store.users[].password": "Of the user; `${env:NAME}` keeps it out of the file.",
}
_ENTRY: Final = re.compile(r"^ {4}(\w+): (.*(?:\n {8,}.*|\n(?=\n {8,}))*)", re.MULTILINE)


def settings(struct: type[msgspec.Struct], path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(path, what is allowed, default, what it does) of each setting of *struct*, sections included."""
    words = _words(struct)
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)  # noqa: S101 - for the type checker
    for field in info.fields:
        where = f"{path}.{field.encode_name}" if path else field.encode_name
        inner, suffix = _struct_in(field.type)
        if inner is None:
            yield (
                where,
                describe(field.type, field.encode_name),
                _default(field, where),
                _WORDS.get(where) or words.get(field.name, ""),
            )
        else:
            if suffix:
                yield where, "a list", _default(field, where), _WORDS.get(where) or words.get(field.name, "")
            yield from settings(inner, where + suffix)


def _struct_in(info: inspect.Type) -> tuple[type[msgspec.Struct] | None, str]:
    if isinstance(info, inspect.StructType):
        return info.cls, ""
    if isinstance(info, inspect.VarTupleType) and isinstance(info.item_type, inspect.StructType):
        return info.item_type.cls, "[]"
    return None, ""


def _default(field: inspect.Field, path: str) -> str:  # noqa: PLR0911 - one a kind of value
    if path in _DEFAULTS:
        return _DEFAULTS[path]
    if field.required:
        return "none: must be set"
    value: Any = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if is_secret(field.encode_name) or value in ("", ()):
        return "empty"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and field.encode_name.endswith("_bytes"):
        return f"`{size(value)}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    if isinstance(value, int | float):
        return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
    return f"`{value}`"


def _words(struct: type[msgspec.Struct]) -> dict[str, str]:
    """What a struct's docstring says of each field, under ``Attributes:`` or in sentences about *field*."""
    docstring = python_inspect.getdoc(struct) or ""
    prose, _, attributes = docstring.partition("Attributes:\n")
    found = {match[1]: _plain(match[2]) for match in _ENTRY.finditer(attributes)}
    names = [field.name for field in msgspec.structs.fields(struct)]
    mention = re.compile(rf"\*({'|'.join(names)})\*")
    for mark, after in itertools.pairwise([*mention.finditer(prose), None]):
        assert mark is not None  # noqa: S101 - for the type checker
        text = prose[mark.start() : after.start() if after else len(prose)]
        found.setdefault(mark[1], _plain(text))
    return found


def _plain(text: str) -> str:
    """One line of Markdown, fit for a table's cell."""
    line = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    return re.sub(r"\*(\w+)\*", r"`\1`", line)


def markdown(struct: type[msgspec.Struct]) -> str:
    """The whole document for the settings of *struct*."""
    lines = [INTRODUCTION]
    for field in msgspec.structs.fields(struct):
        section = field.type
        summary = _summary(section)
        lines += [f"## {field.encode_name}", "", *([summary, ""] if summary else [])]
        lines += ["| setting | allowed | default | what it does |", "|---|---|---|---|"]
        lines += [
            f"| `{path}` | {allowed.replace('|', chr(92) + '|')} | {default} | {words} |"
            for path, allowed, default, words in settings(section, field.encode_name)
        ]
        lines.append("")
    return "\n".join(lines)


def _summary(section: Any) -> str:
    first = (python_inspect.getdoc(section) or "").partition("\n\n")[0]
    text = _plain(re.sub(r"^The ``[\w.]+`` section(: )?\.?", "", first)).strip()
    return text[:1].upper() + text[1:]


INTRODUCTION: Final = """\
# Configuration

Everything has a default that works on one machine, so that no file is needed. A file is named with `--config FILE`
or in `AUDITSPAN_CONFIG`; it is YAML, read once at start. `auditspan config check FILE` says whether it is right and
what is in effect; a wrong setting is one line with its path, its value and what is allowed, and exit status 2.

```yaml
receiver:
  grpc: {listen: 0.0.0.0:4317}
  http: {listen: 0.0.0.0:4318}
  tls:
    cert_file: /etc/auditspan/tls/collector.pem
    key_file: /etc/auditspan/tls/collector.key
  senders:
    - name: shop
      token: ${env:AUDITSPAN_SHOP_TOKEN}
      services: ["shop-*"]
      instrumented: true
clickhouse:
  url: https://clickhouse.internal:8443
  user: auditspan_writer
  password: ${env:CLICKHOUSE_PASSWORD}
spool:
  path: /var/lib/auditspan/spool
  max_bytes: 64GiB
```

- **From the environment:** `${env:NAME}` anywhere in a value, `${env:NAME:-default}` for when it is unset or empty,
  `$$` for a dollar sign. A variable that is not set and has no default is an error. Inside `{...}` or `[...]` write
  references in quotes.
- **Sizes** (`*_bytes`): a number of bytes, or `KiB MiB GiB TiB` (powers of 1024), `KB MB GB TB` (powers of 1000).
- **Durations** (`*_s`, `*_ms`): a number in that unit, or `500ms`, `5s`, `1m30s`, `2h`, `7d`.
- **The data folder** is `--data DIR`, else `AUDITSPAN_DATA`, else `$XDG_DATA_HOME/auditspan`, else
  `~/.local/share/auditspan`.
- Keys are checked: an unknown one, one that stands twice, and a value of another type are errors. YAML 1.2's rules
  apply: `yes` is text; booleans are `true` and `false`.

The tables below are made from the code (`auditspan config reference`).
"""
