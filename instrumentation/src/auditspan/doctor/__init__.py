"""``auditspan-doctor``: is this service audited, what of it is not and why, and do its records get away?

It looks and changes nothing: no server is started, no span and no record is made, and what it sends is one Export
request without spans. Decisions come from the code that decides at run time. docs/doctor.md has the shape of the
report.
"""
