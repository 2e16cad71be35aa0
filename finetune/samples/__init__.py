"""A record on disk → a ``Conversation`` with its pictures and videos."""
