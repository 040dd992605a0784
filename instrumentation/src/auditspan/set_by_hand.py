"""Audit attributes that somebody else put on a span: which may count as the application's word, and which nobody may say.

Pure. Another processor may copy baggage onto spans, and baggage may be a client's; so nothing counts whose name came by
baggage, and nothing that is ours alone to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from auditspan import attributes as names

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from opentelemetry.util.types import AnyValue

# What the application may say by hand on its span, in the words of the draft conventions, besides the functions.
_SAYABLE: Final = frozenset({names.ACTION, names.OUTCOME, names.REASON, names.TARGET_TYPE, names.TARGET_ID})
_OURS: Final = frozenset(
    value for name, value in vars(names).items() if isinstance(value, str) and value.startswith(names.PREFIX)
) - {names.PREFIX}


def said(
    attributes: Mapping[str, AnyValue], shown: Mapping[str, AnyValue], carried: frozenset[str]
) -> dict[str, AnyValue]:
    """Audit attributes that the application may have set: not ours (*shown*), and none that baggage *carried* a value for."""
    return {
        key: value
        for key, value in attributes.items()
        if key.startswith(names.PREFIX)
        and (key not in _OURS or key in _SAYABLE)
        and key not in carried
        and not (key in shown and shown[key] == value)
    }


def clear(attributes: MutableMapping[str, AnyValue], carried: frozenset[str]) -> None:
    """Take what is nobody's to say but ours, and what was *carried*, from the *attributes* that a record gets."""
    for key in [key for key in attributes if key.startswith(names.PREFIX)]:
        if key in _OURS or key in carried:
            del attributes[key]
