"""Read the file that ``OTEL_AUDITSPAN_RULES`` names: all of it, or nothing with every mistake and its line.

docs/rules.md has the format. The YAML is walked as nodes, which know their lines and hide no doubled key, and no
object is ever made of it. PyYAML is imported by ``read`` alone: it costs 15 ms, and most services have no rules.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from auditspan.operator_files import read_small
from auditspan.rules import AUDIT, SECRET_COLUMNS, SKIP, Keep, Rule, Rules

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_BYTES: Final = 128 * 1024
MAX_RULES: Final = 500
_MAX_TEXT: Final = 1024  # characters
_MAX_MISTAKES: Final = 20  # that are named at once

_MATCHES: Final = ("route", "method", "grpc", "task", "table")
_ACTION: Final = re.compile(r"[A-Z][A-Z0-9_]*")
_METHOD: Final = re.compile(r"[A-Z]+")
_RPC: Final = re.compile(r"/?[\w.*?]+(?:/[\w*?]+)?")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110 section 5.1, in lower case
_PARAMETER: Final = re.compile(r"\w+(?:\.\w+)*")

# Whoever has their values can act as somebody else.
CREDENTIALS: Final = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "audit-context",
        "x-api-key",
        "api-key",
        "apikey",
        "x-auth-token",
        "x-access-token",
        "x-csrf-token",
        "x-xsrf-token",
        "x-amz-security-token",
        "x-goog-iap-jwt-assertion",
    }
)


class RulesError(ValueError):
    """A file that can't be used; *mistakes* are sentences that begin with ``FILE:LINE:``."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(mistakes)


def read(path: Path) -> Rules:
    """The rules in *path*. Raises RulesError, also when it can't be read."""
    try:
        content, _ = read_small(path, MAX_BYTES)
    except ValueError as problem:
        raise RulesError([str(problem)]) from None
    return parse(content, str(path))


def parse(content: str, name: str) -> Rules:
    """The rules in a file's *content*; *name* stands for the file in messages. Raises RulesError."""
    import yaml  # noqa: PLC0415 - see the module

    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise RulesError([f"{name}:{line}: {problem.problem or problem.context}"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        text = str(problem).splitlines()[0] if str(problem) else "is nested too deeply"
        raise RulesError([f"{name}:1: is no YAML: {text}"]) from None
    return _Reader(name).rules(root)


class _Reader:
    """Walks the nodes of one file and collects what is wrong with them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._mistakes: list[str] = []

    def rules(self, root: Any) -> Rules:
        keep, found = Keep(), ()
        if root is None:
            self._mistakes.append(f"{self._name}:1: is empty; expected `rules:` with a list")
        else:
            content = self._mapping(root, {"rules": self._rules, "keep": self._keep}, "the file")
            keep, found = content.get("keep", keep), content.get("rules", found)
            if "rules" not in content and "keep" not in content:
                self._wrong(root, "expected `rules:` with a list of rules")
        if self._mistakes:
            more = len(self._mistakes) - _MAX_MISTAKES
            raise RulesError(
                self._mistakes[:_MAX_MISTAKES] + ([f"and {more} more mistakes"] if more > 0 else [])
            )
        return Rules(found, keep)

    def _rules(self, node: Any) -> tuple[Rule, ...]:
        if node.id != "sequence":
            self._wrong(node, "`rules` is a list: one `- ` for each rule")
            return ()
        if len(node.value) > MAX_RULES:
            self._wrong(node, f"{len(node.value)} rules; {MAX_RULES} are allowed")
            return ()
        found = tuple(rule for item in node.value if (rule := self._rule(item)) is not None)
        seen: dict[object, Rule] = {}
        for rule in found:
            first = seen.setdefault((rule.routes, rule.methods, rule.rpcs, rule.tasks, rule.tables), rule)
            if first is not rule:
                self._mistakes.append(
                    f"{rule.place}: fits the same requests as the rule at {first.place}, so it never counts"
                )
        return found

    def _rule(self, node: Any) -> Rule | None:
        readers: dict[str, Callable[[Any], Any]] = {
            "route": lambda n: self._texts(n, self._route),
            "method": lambda n: self._texts(n, self._method),
            "grpc": lambda n: self._texts(n, self._rpc),
            "task": lambda n: self._texts(n, self._text),
            "do": lambda n: self._word(n, (AUDIT, SKIP)),
            "action": self._action,
            "target": self._target,
            "reason": self._text,
            "keep": self._keep,
            "table": lambda n: self._texts(n, self._text),
            "columns": lambda n: self._texts(n, self._column),
        }
        content = self._mapping(node, readers, "a rule")
        if node.id != "mapping":
            return None
        given = {key.value for key, _ in node.value if key.id == "scalar"}
        if not given.intersection(_MATCHES):
            self._wrong(node, f"a rule says which requests it fits: one of {', '.join(_MATCHES)}")
        if len(given & {"grpc", "task", "table"}) + bool(given & {"route", "method"}) > 1:
            self._wrong(
                node,
                "no request fits all of it: `route` and `method` are HTTP's, `grpc`, `task` and `table` stand alone",
            )
        if given <= set(_MATCHES):
            self._wrong(node, "a rule says what to do: do, action, target, reason, keep or columns")
        if content.get("do") == SKIP and given & {"action", "target", "reason", "keep", "columns"}:
            self._wrong(
                node, "`do: skip` leaves nothing to describe; remove action, target, reason, keep and columns"
            )
        if "table" in given and "keep" in given:
            self._wrong(
                node, "a table has no headers and no query; `columns` names what its records may hold"
            )
        if "columns" in given and "table" not in given:
            self._wrong(node, "`columns` stands with `table`")
        target_type, target_id = content.get("target") or ("", ())
        if "table" in given and SECRET_COLUMNS.intersection(name.lower() for name in target_id):
            self._wrong(node, f"id {'/'.join(target_id)!r}: holds a secret, and no record may")
        if "task" in given and target_id:
            self._wrong(node, "a task's arguments are on no span, so the target's `id` can't be one")
        return Rule(
            place=f"{self._name}:{node.start_mark.line + 1}",
            routes=content.get("route") or (),
            methods=frozenset(content.get("method") or ()),
            rpcs=content.get("grpc") or (),
            tasks=content.get("task") or (),
            tables=content.get("table") or (),
            do=content.get("do") or "",
            action=content.get("action") or "",
            target_type=target_type,
            target_id=target_id,
            reason=content.get("reason") or "",
            keep=content.get("keep") or Keep(),
            columns=content.get("columns") or (),
        )

    # -- what stands behind each key

    def _route(self, node: Any) -> str:
        text = self._text(node)
        if text and not text.startswith(("/", "*")):
            self._wrong(node, f"route {text!r}: begins with / (or is a pattern that begins with *)")
        return text

    def _method(self, node: Any) -> str:
        text = self._text(node).upper()
        if text and not _METHOD.fullmatch(text):
            self._wrong(node, f"method {text!r}: is one word, for instance GET")
        return text

    def _rpc(self, node: Any) -> str:
        text = self._text(node)
        if text and not _RPC.fullmatch(text):
            self._wrong(
                node, f"grpc {text!r}: is package.Service or package.Service/Method, where * is any text"
            )
        text = text.removeprefix("/")
        return f"/{text}" if "/" in text else f"/{text}/*"

    def _action(self, node: Any) -> str:
        text = self._text(node)
        if text and not _ACTION.fullmatch(text):
            self._wrong(node, f"action {text!r}: is a verb in upper case: letters, digits and _")
        return text

    def _target(self, node: Any) -> tuple[str, tuple[str, ...]]:
        readers = {"type": self._text, "id": lambda n: self._texts(n, self._parameter)}
        content = self._mapping(node, readers, "`target`")
        if node.id == "mapping" and not node.value:
            self._wrong(node, "`target` has type, id or both")
        return content.get("type") or "", content.get("id") or ()

    def _parameter(self, node: Any) -> str:
        if node.id == "mapping":
            self._wrong(node, "`id` is the name of a parameter, without braces")
            return ""
        text = self._text(node)
        if text and not _PARAMETER.fullmatch(text):
            self._wrong(node, f"id {text!r}: is the name of a parameter (of a field, for gRPC)")
        return text

    def _column(self, node: Any) -> str:
        text = self._text(node)
        if text.lower() in SECRET_COLUMNS:
            self._wrong(node, f"column {text!r}: holds a secret, and no record may")
        return text

    def _keep(self, node: Any) -> Keep:
        readers: dict[str, Callable[[Any], Any]] = {
            "headers": lambda n: self._texts(n, self._header),
            "query": lambda n: self._texts(n, self._text),
            "exceptions": self._boolean,
        }
        content = self._mapping(node, readers, "`keep`")
        return Keep(
            frozenset(content.get("headers") or ()),
            frozenset(content.get("query") or ()),
            bool(content.get("exceptions")),
        )

    def _header(self, node: Any) -> str:
        text = self._text(node).lower()
        if text.replace("_", "-") in CREDENTIALS:  # WSGI can't tell the two apart
            self._wrong(node, f"header {text!r}: holds a credential, which no record may")
        elif text and not _HEADER.fullmatch(text):
            self._wrong(node, f"header {text!r}: is no header's name")
        return text

    # -- YAML

    def _mapping(self, node: Any, readers: dict[str, Callable[[Any], Any]], what: str) -> dict[str, Any]:
        if node.id != "mapping":
            self._wrong(node, f"{what} is a mapping with {', '.join(readers)}")
            return {}
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = key.value if key.id == "scalar" else ""
            if name not in readers:
                self._wrong(key, f"{what} has no {name!r}; it has {', '.join(readers)}")
            elif name in found:
                self._wrong(key, f"{name!r} occurs twice")
            else:
                found[name] = readers[name](value)
        return found

    def _texts(self, node: Any, reader: Callable[[Any], str]) -> tuple[str, ...]:
        if node.id != "sequence":
            return (reader(node),)
        if not node.value:
            self._wrong(node, "the list is empty")
        if len(node.value) > MAX_RULES:
            self._wrong(node, f"{len(node.value)} entries; {MAX_RULES} are allowed")
            return ()
        return tuple(reader(item) for item in node.value)

    def _text(self, node: Any) -> str:
        if node.id != "scalar":
            self._wrong(node, "expected a text")
        elif node.tag != "tag:yaml.org,2002:str":
            kind = node.tag.rpartition(":")[2]
            self._wrong(
                node, f"{node.value!r} is a {kind} in YAML; write it in quotes where you mean the text"
            )
        elif not node.value.strip() or not node.value.isprintable():
            self._wrong(node, "the text is empty, or has characters that can't be seen")
        elif len(node.value) > _MAX_TEXT:
            self._wrong(node, f"the text has {len(node.value)} characters; {_MAX_TEXT} are allowed")
        else:
            return str(node.value)
        return ""

    def _word(self, node: Any, allowed: tuple[str, ...]) -> str:
        text = self._text(node)
        if text and text not in allowed:
            self._wrong(node, f"{text!r} is not known; allowed is {' or '.join(allowed)}")
        return text

    def _boolean(self, node: Any) -> bool:
        if node.id != "scalar" or node.tag != "tag:yaml.org,2002:bool":
            self._wrong(node, "expected true or false")
            return False
        return node.value.lower() in {"true", "yes", "on"}

    def _wrong(self, node: Any, text: str) -> None:
        self._mistakes.append(f"{self._name}:{node.start_mark.line + 1}: {text}")
