"""Who did what: every reader (the commands, later the web and alert rules) asks through this room.

Questions are a `filter.Filter`; `search.search`, `follow.follow` and `trace.trace` answer them. They read, and
never write.
"""
