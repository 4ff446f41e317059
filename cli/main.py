"""The ``geoseg`` command: collects the commands and turns faults into one sentence and an exit code."""

from __future__ import annotations

import atexit
import gc
import importlib
import keyword
import signal
import sys
import traceback
import warnings
from typing import Any

import click

from geoseg import __version__
from geoseg.errors import ConfigError, GeosegError, GeosegWarning

# Module and one-line help of each command; a module is imported only when its command runs.
_COMMANDS = {
    "predict": "Segment a scene with a model and write class polygons.",
    "batch": "Segment many scenes on one cluster, with one report.",
    "cluster": "Segment a scene without a model or labels.",
    "name": "Name the segments that cluster found.",
    "refine": "Bring labels to the edges of the image below them.",
    "evaluate": "Compare a prediction with a reference.",
    "view": "Make a web map of outputs that any browser opens.",
    "preview": "Make a picture of outputs, with a legend and a scale bar.",
    "vectorize": "Turn a label raster into class polygons.",
    "train": "Train a network on scenes with labels.",
    "adapt": "Move a model to scenes of another region without labels.",
    "coarse-stats": "Measure what coarse classes are made of, for training on coarse labels.",
    "coarse-check": "Map where a prediction contradicts a coarse map.",
    "init": "Make an untrained model.",
    "import": "Make a model of weights that another program trained, or of an ONNX file.",
    "export": "Write a model as ONNX, or describe it as a STAC item.",
    "info": "Show what a scene or a model is.",
    "networks": "List the networks a model can be made of.",
    "losses": "List the losses a network can be trained with.",
    "methods": "List the ways of segmenting a scene.",
    "demo": "Segment the sample scene that comes with geoseg.",
    "qgis-plugin": "Write the plugin that brings geoseg to QGIS.",
    "completion": "Print what makes a shell complete commands, options and files.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use, so that ``geoseg --help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, None if there is none of that name."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"geoseg_cli.{_module(cmd_name)}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _module(name: str) -> str:
    """Return the module of a command; one whose name Python keeps for itself ends in an underscore."""
    return f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="geoseg")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def geoseg(debug: bool) -> None:
    """Segment georeferenced rasters into class polygons without a seam.

    \b
    Example:
      geoseg cluster scene.tif segments.gpkg
      geoseg predict scene.tif classes.geojson -m model.safetensors
    """


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Print a warning of ours as one line: where in the code it comes from says nothing to a user."""
    if issubclass(category, GeosegWarning):
        click.echo(f"Warning: {message}", err=True)
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


def _end_at_once_when_told() -> None:
    """Let Ctrl-C end this process without a word: the command is done, and tracebacks of what is left tell nothing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.default_int_handler:  # not where nobody listens
            signal.signal(number, signal.SIG_DFL)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit code 0, 1 for a failure, 2 for wrong usage."""
    if arguments is None:
        # The process ends with the command: what it leaves need not be searched for garbage first.
        atexit.register(gc.freeze)
        from geoseg.engine.waiting import sleep_soon

        sleep_soon()
        warnings.showwarning = _show_warning
        # Whoever ends a run kindly (QGIS, a queue of jobs) means the same as Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        code = geoseg.main(args=given, prog_name="geoseg", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped. What was finished is kept: run the same command again to go on.", err=True)
        sys.exit(1)
    except GeosegError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"Error: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        told = " ".join(str(error).split()) or "no message"
        click.echo(
            f"Error: geoseg failed unexpectedly ({type(error).__name__}: {told}); "
            "run the command again with --debug and report what it prints.",
            err=True,
        )
        sys.exit(1)
    finally:
        if arguments is None:
            _end_at_once_when_told()
