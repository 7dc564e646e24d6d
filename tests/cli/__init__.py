"""The `volcore` command."""
