"""Read YAML text into values that remember the line they stood on, with ``${env:NAME}`` filled in.

YAML is read by its 1.2 core schema, as OpenTelemetry's configuration files are: ``yes`` is text, ``true`` is a
boolean, ``12:30`` is not 750. Substitution follows
https://opentelemetry.io/docs/specs/otel/configuration/data-model/#environment-variable-substitution
with one difference: a variable that is not set and has no default is an error, since a setting that silently
becomes empty is how a collector ends up without its tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import yaml

from auditspan_collector.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_REFERENCE = re.compile(r"\$\$|\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^\n}]*))?\}|\$\{[^}\n]*\}?")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. *quoted* text is text whatever it looks like; so is what came from the environment, if need be."""

    text: str
    quoted: bool
    from_environment: bool
    line: int

    @property
    def kind(self) -> str:
        """null, bool, int, float or str, by YAML 1.2's core schema."""
        if self.quoted:
            return "str"
        if self.text in _NULL:
            return "null"
        if self.text in _BOOL:
            return "bool"
        if _INT.fullmatch(self.text):
            return "int"
        return "float" if _FLOAT.fullmatch(self.text) else "str"

    def boolean(self) -> bool:
        """The value, when *kind* is bool."""
        return _BOOL[self.text]


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping; keys are unique."""

    entries: dict[str, Value]
    line: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    items: tuple[Value, ...]
    line: int


Value = Scalar | Section | Sequence


def read(text: str, environ: Mapping[str, str]) -> Section:
    """The document's top section; an empty document is an empty section.

    Raises ConfigError for what is not YAML, for a key that stands twice, and for a variable that is not set.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        hint = ""
        if "${" in "".join(text.splitlines()[line - 1 : line]):
            hint = '; inside {...} or [...] write references in quotes: "${env:NAME}"'
        raise ConfigError(f"not YAML: {error.problem}{hint} (line {line})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from error
    if root is None:
        return Section({}, 1)
    value = _value(root, "", environ, 0)
    if isinstance(value, Scalar) and value.kind == "null":
        return Section({}, 1)
    if not isinstance(value, Section):
        raise ConfigError(
            f"the file holds no settings; allowed: sections such as `receiver:` (line {value.line})"
        )
    return value


def _value(node: yaml.Node, path: str, environ: Mapping[str, str], depth: int) -> Value:
    line = node.start_mark.line + 1
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{path[:80]}: nested too deeply (line {line})")
    if isinstance(node, yaml.ScalarNode):
        text, from_environment = _substitute(node.value, path, line, environ)
        return Scalar(text, node.style is not None, from_environment, line)
    if isinstance(node, yaml.SequenceNode):
        items = tuple(
            _value(item, f"{path}[{position}]", environ, depth + 1)
            for position, item in enumerate(node.value)
        )
        return Sequence(items, line)
    entries: dict[str, Value] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        inner = f"{path}.{key}" if path else key
        if key in entries:
            raise ConfigError(f"{inner}: stands here twice; keep one (line {key_node.start_mark.line + 1})")
        entries[key] = _value(value_node, inner, environ, depth + 1)
    return Section(entries, line)


def _substitute(text: str, path: str, line: int, environ: Mapping[str, str]) -> tuple[str, bool]:
    """*text* with its references filled in, once: what a variable holds is not looked at again."""
    found = False

    def fill(match: re.Match[str]) -> str:
        nonlocal found
        if match[0] == "$$":
            return "$"
        name, default = match[1], match[2]
        if name is None:
            raise ConfigError(
                f"{path}: {match[0]!r}; allowed: ${{env:NAME}}, ${{env:NAME:-default}}, and $$ for a dollar sign "
                f"(line {line})"
            )
        found = True
        value = environ.get(name)
        if not value and default is not None:
            return default
        if value is None:
            raise ConfigError(
                f"{path}: the environment variable {name} is not set; set it, or write ${{env:{name}:-default}} "
                f"(line {line})"
            )
        return value

    return _REFERENCE.sub(fill, text), found
