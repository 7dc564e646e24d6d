"""Names, records and intents: the one source of truth for what exists."""
