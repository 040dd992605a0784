"""Print docs/schema.md: ``python -m auditspan_collector.schema > docs/schema.md``."""

from __future__ import annotations

import sys

from auditspan_collector.schema.document import markdown

sys.stdout.write(markdown())
