"""One run of `generate`: its media opened, its plan, what tells it from another, and who watches it."""
