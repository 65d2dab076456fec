"""One training: its session, its module and what runs next to it."""
