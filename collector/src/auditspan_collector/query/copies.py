"""Show a record once when two collectors stored it.

Within one collector, or one worker of it, a record is stored once. When a sender gave the same record to two (a retry
after a lost answer that went to another one), both sealed it, and the ledger rightly holds it twice. Readers then see
the first copy only. A copy is a row with the same content in every leaf column but the received time; the record
id alone would let anyone who knows it hide a record behind another.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auditspan_collector.query.rows import StoredRecord


class Copies:
    """Remember what was shown; at most the last *most* records, 16 bytes each.

    Copies share their start time, so they are neighbours wherever rows come in that order, and a short memory is
    exact. Where rows come as they are stored (`follow`), a copy that is stored more than *most* records later is
    shown again.
    """

    def __init__(self, most: int = 65_536) -> None:
        self._most = most
        self._shown: OrderedDict[bytes, None] = OrderedDict()

    def seen(self, row: StoredRecord) -> bool:
        """Whether the same content was asked about before; remembers it."""
        content = repr(replace(row.record, received_time_unix_ms=0)).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest in self._shown:
            return True
        self._shown[digest] = None
        if len(self._shown) > self._most:
            self._shown.popitem(last=False)
        return False
