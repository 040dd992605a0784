"""Give each record its place in an append-only sequence that nobody can change unseen."""
