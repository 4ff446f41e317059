"""Commands of the documents: taken apart as a shell would, and checked against the commands that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

from geoseg_cli.main import geoseg as program
from tests.docs.pages import Block

# Words that a shell line of the documents may begin with beside ``geoseg``; another one is a slip, or belongs here.
OTHERS = {
    *(
        "CUDA_VISIBLE_DEVICES=0",
        "CUDA_VISIBLE_DEVICES=1",
        "apt-get",
        "cd",
        "cp",
        "dask",
        "do",
        "done",
        "eval",
        "export",
        "for",
    ),
    *("git", "kubectl", "make", "pip", "python", "split"),
}


def lines(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a block; a line that ends in a backslash goes on.

    Where its output goes is left out.
    """
    for line in re.sub(r"\\\n", " ", block.text).splitlines():
        # Only a word of its own begins a comment: a colour such as #d55e00 does not.
        words = shlex.split(re.sub(r"(?:^|\s)#.*", "", line))
        if words and words[-1] == "&":
            words.pop()
        if len(words) > 2 and words[-2] == ">":
            del words[-2:]
        if words:
            yield words


def _around() -> click.Context:
    """Return the context that commands run in: what they take from it, they keep, such as the names of --help."""
    return click.Context(program, info_name="geoseg", **program.context_settings)


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that words after ``geoseg`` name, and its arguments.

    Raises:
        LookupError: there is no such command.
    """
    command = program.get_command(_around(), words[0]) if words else program
    if command is None:
        raise LookupError(f"there is no command {words[0]!r}")
    return command, words[1:]


def parsed(words: list[str]) -> dict[str, object]:
    """Return what click makes of words after ``geoseg``: every option known, every value of its type.

    Raises:
        LookupError: there is no such command.
        click.UsageError: click refuses the words.
    """
    if words and words[0].startswith("-"):
        return program.make_context("geoseg", [*words, "methods"]).params
    command, arguments = command_of(words)
    try:
        return command.make_context(words[0], list(arguments), parent=_around()).params
    except click.exceptions.Exit:  # --help and --version end a command before it begins
        return {}


def every_option() -> set[str]:
    """Return the names of all options of all commands."""
    context = _around()
    commands = [program, *(program.get_command(context, each) for each in program.list_commands(context))]
    named = {option for each in commands if each for param in each.params for option in param.opts}
    return named | {"--help", "-h", "--version"}
