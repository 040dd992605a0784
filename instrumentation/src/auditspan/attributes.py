"""The ``audit.*`` span attributes: the contract between an instrumented service and the collector.

Names follow the draft OpenTelemetry audit conventions where those have them. Each constant is an attribute
key; its comment gives the type and meaning of the value. Both sides import this module, so a name exists once.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "audit."  # a span is audit-tagged when a key starts with this

RECORD_ID: Final = "audit.record.id"  # string, UUIDv7; set once per record, the same on every retry

ACTOR_ID: Final = "audit.actor.id"  # string; who
ACTOR_TYPE: Final = "audit.actor.type"  # string; one of ACTOR_TYPES
ACTOR_ROLES: Final = "audit.actor.roles"  # string[]; roles or scopes held at that moment
ACTOR_ORIGIN: Final = "audit.actor.origin"  # string; one of ORIGINS: how we know the actor
ACTOR_SESSION: Final = "audit.actor.session_id"  # string; the session, hashed
ACTOR_AUTH_METHOD: Final = "audit.actor.auth_method"  # string; how they authenticated
ACTOR_DELEGATE: Final = "audit.actor.delegate"  # string; who acts for them
ACTOR_KEY_ID: Final = "audit.actor.key_id"  # string; the key of a pseudonym in ACTOR_ID; no column of its own

ACTION: Final = "audit.action"  # string; one of ACTIONS or the application's own upper-case verb
OUTCOME: Final = "audit.outcome"  # string; one of OUTCOMES
REASON: Final = "audit.reason"  # string; the stated reason, or why it was denied

TARGET_TYPE: Final = "audit.target.type"  # string; what kind of thing was acted on
TARGET_ID: Final = "audit.target.id"  # string; which one

PARENT_SPAN_ID: Final = "audit.parent.span_id"  # string, 16 hex digits; nearest audited span upstream
SEQUENCE_STREAM: Final = "audit.sequence.stream_id"  # string; this process's emitter
SEQUENCE_NUMBER: Final = "audit.sequence.number"  # int, from 1; a gap is a lost record
SCHEMA_VERSION: Final = "audit.schema.version"  # string
# string; the trusted proxy at the other end of the connection, where client.address is who it spoke for
PROXY_ADDRESS: Final = "audit.proxy.address"
DELIVERY: Final = "audit.delivery"  # string; DELIVERY_SPOOL on the ordinary copy of a spooled record

SCHEMA_VERSION_VALUE: Final = "1"
DELIVERY_SPOOL: Final = "spool"

# Why what the caller said of the actor was not believed; kept with the record, no column of its own.
# A string; docs/audit-context.md has the reasons.
CONTEXT_REJECTED: Final = "audit.context.rejected"

# int; how many denied requests of nobody this record stands for, from its start to its end; no column of its own.
FOLDED_COUNT: Final = "audit.folded.count"
LOST_COUNT: Final = (
    "audit.lost.count"  # int; how many records the process could not keep; no column of its own
)

# A change of data, besides what OpenTelemetry has names for (db.*); no columns of their own. They don't begin with PREFIX, for
# they make no span a record.
CHANGE_ROWS: Final = "auditspan.change.rows"  # int; absent where nobody can say
CHANGE_KEYS: Final = (
    "auditspan.change.keys"  # string[]; the first rows' primary keys, empty where one isn't known
)
CHANGE_STATEMENTS: Final = "auditspan.change.statements"  # int, from 2; how many this record stands for
# + column: string for one row, string[] in the order of the keys for several
CHANGE_BEFORE: Final = "auditspan.change.before."
CHANGE_AFTER: Final = "auditspan.change.after."

ANONYMOUS: Final = "anonymous"  # actor id: the framework says that it is nobody
UNKNOWN: Final = "unknown"  # actor id and outcome: nobody can say

ACTOR_TYPES: Final = ("user", "service", "system")

AUTHENTICATED: Final = "authenticated"
ASSERTED: Final = "asserted"
UNVERIFIED: Final = "unverified"
ORIGINS: Final = (AUTHENTICATED, ASSERTED, UNVERIFIED)

SUCCESS: Final = "success"
FAILURE: Final = "failure"
DENIED: Final = "denied"
OUTCOMES: Final = (SUCCESS, FAILURE, DENIED, UNKNOWN)

ACTIONS: Final = (
    "LOGIN",
    "LOGOUT",
    "READ",
    "CREATE",
    "UPDATE",
    "DELETE",
    "EXECUTE",
    "APPROVE",
    "REJECT",
    "EXPORT",
    "IMPORT",
    "GRANT",
    "REVOKE",
)
