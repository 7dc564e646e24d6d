"""`volcore serve`: be the server."""


def serve() -> None:
    """Run a server."""
