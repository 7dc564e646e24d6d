"""`volcore serve`: be the server; `volcore settle`: see to what a killed one has left."""

from pathlib import Path
from typing import Annotated, Any

import typer


def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file, see docs/configuration.md. Default: $VOLCORE_CONFIG, else "
            "/etc/volcore/volcore.toml if it is there, else one embedded pool."
        ),
    ] = None,
    pool_directory: Annotated[
        Path | None,
        typer.Option(help="Serve an embedded pool, named 'default', in this directory."),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(help="unix:///PATH or ADDRESS:PORT for the API; repeatable."),
    ] = None,
    nbd_listen: Annotated[
        list[str] | None,
        typer.Option(help="unix:///PATH or loopback ADDRESS:PORT for NBD; repeatable."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. Default: info.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="json, or console for people. Default: json.")
    ] = None,
) -> None:
    """Run a server until SIGTERM or Ctrl-C, then stop gracefully. Flags win over the file."""
    from volcore.config import DEFAULT_POOL, load_config
    from volcore.daemon import serve as run

    overrides: dict[str, Any] = {}
    if pool_directory is not None:
        overrides[f"pools.{DEFAULT_POOL}.backend"] = "local"
        overrides[f"pools.{DEFAULT_POOL}.directory"] = str(pool_directory.absolute())
    given = {
        "server.listen": listen,
        "nbd.listen": nbd_listen,
        "log.level": log_level,
        "log.format": log_format,
    }
    overrides |= {key: value for key, value in given.items() if value is not None}
    raise typer.Exit(run(load_config(config, overrides=overrides)))


def settle(
    config: Annotated[
        Path | None, typer.Option(help="The TOML file of the server. Default: as of `serve`.")
    ] = None,
) -> None:
    """Make durable what a killed server left of embedded pools; then they may leave this host."""
    from volcore.config import load_config
    from volcore.daemon import settle as run

    raise typer.Exit(run(load_config(config)))
