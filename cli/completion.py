"""``geoseg completion``: what makes a shell complete commands, options and files."""

from __future__ import annotations

import click

# How the script tells the program that a completion is wanted.
VARIABLE = "_GEOSEG_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script that makes SHELL complete the commands and options of geoseg, names of models, and files.

    Bash 4.4 or newer is needed.  To have it in every shell, put the last line below into ~/.bashrc, or its like into
    ~/.zshrc; fish reads what lies in ~/.config/fish/completions.

    \b
    Example:
      geoseg completion bash
      geoseg completion zsh
      geoseg completion fish

    \b
    In ~/.bashrc:
      eval "$(geoseg completion bash)"
    """
    from click.shell_completion import get_completion_class

    from geoseg_cli.main import geoseg

    kind = get_completion_class(shell)
    assert kind is not None  # the choice above has no others
    click.echo(kind(geoseg, {}, "geoseg", VARIABLE).source())
