"""Entry point of `volcore`: puts the nouns together and turns errors into exit codes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from volcore import limits
from volcore.cli import (
    admin,
    adoption,
    attachment,
    bench,
    host,
    image,
    operation,
    pool,
    report,
    serve,
    snapshot,
    version,
    volume,
)
from volcore.cli.session import Settings
from volcore.errors import VolcoreError

_GLOBAL_FLAGS: Final = frozenset({"--debug"})
_GLOBAL_OPTIONS: Final = frozenset(
    {"--endpoint", "--timeout", "--tls-ca", "--tls-certificate", "--tls-key"}
)

app = typer.Typer(
    name="volcore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
adoption.add_to(volume.app, pool.app)
for noun in (image, volume, snapshot, attachment, host, pool, operation, admin, bench):
    app.add_typer(noun.app)
app.command("serve")(serve.serve)
app.command("settle")(serve.settle)
app.command("version")(version.version)


@app.callback(epilog="Exit codes: docs/cli.md. Sizes need a unit: 10GiB, 512MiB.")
def volcore(
    context: typer.Context,
    endpoint: Annotated[
        str | None,
        typer.Option(
            envvar="VOLCORE_ENDPOINT",
            help="Server to talk to: unix:///PATH or HOST:PORT; several with commas. "
            "Default: the socket that [bold]volcore serve[/bold] uses by default.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds that one call may take (imports and exports have none by default).",
            min=0.001,
            max=limits.WAIT_TIMEOUT_S_MAX,
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(envvar="VOLCORE_TLS_CA", help="PEM: who vouches for the server.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(envvar="VOLCORE_TLS_CERTIFICATE", help="PEM: who we are.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="VOLCORE_TLS_KEY", help="PEM: its private key.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Block volumes: from a golden image to a VM disk in about a millisecond.

    The options below may stand anywhere in a command.
    """
    context.obj = Settings(
        endpoint=endpoint,
        timeout_s=timeout,
        debug=debug,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    words = hoist(list(sys.argv[1:] if arguments is None else arguments))
    debug = "--debug" in words
    try:
        app(args=words, prog_name="volcore")
    except VolcoreError as err:
        sys.exit(report.report(err, debug=debug))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(report.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone, as in `volcore volume list | head`
        sys.exit(report.OK)
    except Exception as err:
        sys.exit(report.report_unexpected(err, debug=debug))


def hoist(words: list[str]) -> list[str]:
    """Return `words` with the global options in front, wherever they stood before a `--`."""
    front: list[str] = []
    rest: list[str] = []
    end = words.index("--") if "--" in words else len(words)
    at = 0
    while at < end:
        word = words[at]
        if word in _GLOBAL_FLAGS or word.partition("=")[0] in _GLOBAL_OPTIONS:
            takes_next = word in _GLOBAL_OPTIONS and at + 1 < end
            front += words[at : at + 1 + takes_next]
            at += 1 + takes_next
        else:
            rest.append(word)
            at += 1
    return front + rest + words[end:]


if __name__ == "__main__":
    main()
