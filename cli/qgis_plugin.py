"""``geoseg qgis-plugin``: the plugin that runs geoseg from QGIS."""

from __future__ import annotations

import click

from geoseg_cli.voice import answer, speaking


@click.command("qgis-plugin")
@click.argument("out", type=click.Path(), default="geoseg_qgis.zip")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@speaking
def command(out: str, overwrite: bool) -> None:
    """Write the plugin that brings geoseg's algorithms to QGIS's Processing toolbox to OUT, a ZIP file.

    In QGIS, Plugins > Manage and Install Plugins > Install from ZIP takes it.  Where `geoseg` is not on PATH for QGIS,
    set its path in Settings > Options > Processing > Providers > geoseg.

    \b
    Example:
      geoseg qgis-plugin geoseg_qgis.zip
    """
    from geoseg.outputs.plugin_zip import write_plugin

    write_plugin(out, overwrite=overwrite)
    answer({}, [out])
