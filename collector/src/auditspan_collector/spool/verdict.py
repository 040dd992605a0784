"""What a record that comes in is, compared with what came before. Only a DUPLICATE is not kept."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """The outcome for one record."""

    FRESH = "fresh"  # nothing came under its key
    DUPLICATE = "duplicate"  # the same content came under its key
    CONFLICT = "conflict"  # other content came under its key
    FORGOTTEN = "forgotten"  # its number is so old that what came under it is no longer known
