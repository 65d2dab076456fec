"""Present results: tables for the terminal, Markdown and CSV."""
