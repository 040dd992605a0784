"""What Auditspan costs the service that it runs in."""
