"""Which requests become records, and why: one answer, for the running service and for ``auditspan-doctor``.

Known before a request ends are its route and its method. What a request turns out to be comes on top: one that is
denied is a record in any case, and so is one that the application speaks of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from auditspan.facts import SAFE_METHODS, ReadMethods, glob
from auditspan.rules import AUDIT, SKIP, Rules

if TYPE_CHECKING:
    from auditspan.rules import Rule
    from auditspan.settings import Settings


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a route's requests are *audited* whatever their outcome, and the *reason*, as a phrase for people.

    *changes* says whether they may change something; *chosen* that the operator said so, where the default is another.
    """

    audited: bool
    reason: str
    changes: bool = False
    chosen: bool = False


class Decisions:
    """What *settings* and the operator's *rules* ask for."""

    def __init__(self, settings: Settings, rules: Rules | None = None) -> None:
        self._rules = Rules() if rules is None else rules  # one with tables alone is false
        self.is_read_method: Final = ReadMethods(settings.grpc_read_methods)
        self._reads = tuple((pattern, glob(pattern)) for pattern in settings.reads)
        self.chooses: Final = bool(self._reads or self._rules)  # otherwise a read is audited on no route

    def passes(self, method: str, status: int) -> bool:
        """Whether an HTTP request that is answered so is audited on no route; cheap, as most requests are such."""
        return not self.chooses and method in SAFE_METHODS and 200 <= status < 300

    def asked_for(self, route: str) -> str:
        """The pattern of ``OTEL_AUDITSPAN_READS`` that fits *route* (parameters as ``{name}``); empty for none."""
        for written, pattern in self._reads:
            if pattern.fullmatch(route):
                return written
        return ""

    def rule_for_table(self, table: str) -> Rule:
        """What the operator says of changes of *table*."""
        return self._rules.of_table(table)

    def decide(self, route: str, method: str) -> Decision:
        """On the HTTP *route* (parameters as ``{name}``) and *method*; on the RPC ``/package.Service/Method`` without."""
        if method:
            changes, why = method not in SAFE_METHODS, f"{method} may change something"
            why_not = f"{method} reads"
        else:
            listed = self.is_read_method.pattern(route)
            changes, why = not listed, "the method is on no read-only list"
            why_not = f"read-only by {listed}"
        rule = self._rules.of({"http.request.method": method} if method else {"rpc.service": route}, route)
        if rule.do in (AUDIT, SKIP):
            said = f"{rule.place} says {rule.do}"
            return Decision(audited=rule.do == AUDIT, reason=said, changes=changes, chosen=True)
        if changes:
            return Decision(audited=True, reason=why, changes=True)
        pattern = self.asked_for(route)
        if pattern:
            return Decision(audited=True, reason=f"OTEL_AUDITSPAN_READS: {pattern}", chosen=True)
        return Decision(audited=False, reason=why_not)
