"""``geoseg view``: outputs as a web map."""

from __future__ import annotations

import click

from geoseg_cli.options import a_file
from geoseg_cli.progress import shown
from geoseg_cli.voice import answer, note, speaking


@click.command("view")
@click.argument("outputs", nargs=-1, required=True, metavar="OUTPUT…", shell_complete=a_file)
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(),
    metavar="MAP.html|FOLDER",
    help="The page, or a folder for a page with the scene in tiles [default: beside OUTPUT].",
)
@click.option("--scene", multiple=True, metavar="SCENE", help="What the outputs were made of; repeatable.")
@click.option("--serve", is_flag=True, help="Serve the map to this machine alone and open it, until stopped.")
@click.option("--overwrite", is_flag=True, help="Replace an existing map.")
@speaking
def command(outputs: tuple[str, ...], out: str | None, scene: tuple[str, ...], serve: bool, overwrite: bool) -> None:
    """Make a web map of OUTPUT that any browser opens, also without a network.

    It shows polygons by class, labels, confidence and the scene below them, in one file. What a .qlr or .qgs beside
    OUTPUT names is shown too; a folder stands for the outputs in it.

    \b
    Example:
      geoseg view buildings.gpkg --scene scene.tif
      geoseg view buildings.gpkg labels.tif --scene scene.tif -o map --serve
    """
    import geoseg

    with shown() as progress:
        looked = geoseg.view(outputs, out, scene=scene, overwrite=overwrite, progress=progress)
    for text in looked.notes:
        note(text)
    answer({}, [looked.file])
    if serve:
        import webbrowser

        from geoseg.looking.serving import MapServer

        with MapServer(looked.file) as server:
            click.echo(f"{server.url} is served until you press Ctrl+C.", err=True)
            webbrowser.open(server.url)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                click.echo("Stopped.", err=True)
