"""Changes of data, as records of the transactions that they were made in.

``statements`` reads which tables a text of SQL changes, ``transaction`` collects changes until their end is known, and
``records`` writes them. What a driver or a mapper tells is the extractors' business.
"""
