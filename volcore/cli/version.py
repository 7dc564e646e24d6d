"""`volcore version`: what is installed here."""

from volcore import __version__
from volcore.cli.output import API_VERSION, Format, print_line, show_facts, show_json
from volcore.cli.session import OutputOption


def version(output: OutputOption = Format.TABLE) -> None:
    """Show the versions of the package, the protocol and the kernels in use."""
    from volcore.kernels import kernel_name

    facts = {"package": __version__, "protocol": "volcore.v1", "kernels": kernel_name()}
    if output is Format.JSON:
        show_json({"apiVersion": API_VERSION, "kind": "Version", **facts})
    elif output is Format.NAME:
        print_line(__version__)
    else:
        show_facts(list(facts.items()))
