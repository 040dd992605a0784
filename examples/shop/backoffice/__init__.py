"""Where the shop's clerks work: Django's admin site over the orders, with people and groups of its own."""
