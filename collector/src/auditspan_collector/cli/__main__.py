"""``python -m auditspan_collector.cli`` is the ``auditspan`` script."""

from auditspan_collector.cli import main

main()
