"""``geoseg networks``: what a model can be made of."""

from __future__ import annotations

import click


@click.command("networks")
def command() -> None:
    """List the networks: default encoder, stride, whether tiles give exactly what one pass would, and what they are.

    \b
    Example:
      geoseg networks
    """
    from geoseg import networks

    rows = [("name", "encoder", "stride", "exact", "what it is")]
    for name in networks.names():
        entry = networks.info(name)
        rows.append((name, entry.encoder or "-", str(entry.stride), "yes" if entry.tile_exact else "no", entry.summary))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + "  " + row[4])
