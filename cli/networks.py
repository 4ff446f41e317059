"""``geoseg networks``: what a model can be made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from geoseg_cli.options import a_network
from geoseg_cli.voice import as_json, speaking, voice

if TYPE_CHECKING:
    from geoseg.networks import NetworkInfo
    from geoseg.networks.facts import Facts

_HEADINGS = ("name", "encoder", "parameters", "MACs", "stride", "exact", "halo", "differ", "needs", "what it is")


@click.command("networks")
@click.argument("name", required=False, shell_complete=a_network)
@speaking
def command(name: str | None) -> None:
    """List the networks, or all that is known of the one called NAME.

    The list gives the default encoder, the parameters, the multiply-adds (MACs) for 512 × 512 pixels, the stride,
    whether tiles give exactly what one pass would, and what was measured before any training: the halo in pixels, and
    the share of labels that differ from one pass with it.  What a network needs is said where it is more than a tile.

    \b
    Example:
      geoseg networks
      geoseg networks unet
      geoseg networks --json
    """
    from geoseg import networks
    from geoseg.networks.facts import facts

    chosen = networks.every_name() if name is None else (networks.info(name).name,)
    entries = [(networks.info(each), facts(each)) for each in chosen]
    if voice().json:
        records = [_record(info, found) for info, found in entries]
        click.echo(as_json(records if name is None else records[0]))
    elif name is None:
        _echo_table([_HEADINGS, *(_row(info, found) for info, found in entries)])
    else:
        _echo_table(_details(*entries[0]))


def _row(info: NetworkInfo, found: Facts | None) -> tuple[str, ...]:
    counts = ("-", "-") if found is None else (f"{found.parameters / 1e6:.2f} M", f"{found.macs / 1e9:.1f} G")
    measured = None if found is None else found.tiling
    tiling = ("-", "-") if measured is None else (str(measured.halo), f"{100 * measured.disagreement:.2g} %")
    exact = "yes" if info.tile_exact else "no"
    return (
        info.name,
        info.encoder or "-",
        *counts,
        str(info.stride),
        exact,
        *tiling,
        _needs(info) or "-",
        info.summary,
    )


def _needs(info: NetworkInfo) -> str:
    """Return what a network needs beside the pixels of a tile, nothing for most."""
    return "labels" if info.needs_prior else "scene" if info.needs_scene else ""


def _details(info: NetworkInfo, found: Facts | None) -> list[tuple[str, str]]:
    otherwise = f"no, but with --set {info.exact_with}" if info.exact_with else "no"
    lines = [
        ("name", info.name),
        ("what it is", info.summary),
        ("family", info.family),
        ("source", info.source),
        ("encoder", info.encoder or "-"),
        ("stride", f"{info.stride} px"),
        ("smallest side", f"{info.min_size} px"),
        ("further outputs in training", ", ".join(info.auxiliary) or "-"),
        *([("needs beside a tile", _needs(info))] if _needs(info) else []),
        ("tiles exact", "yes" if info.tile_exact else otherwise),
    ]
    if found is None:
        return lines
    lines += [
        ("parameters", f"{found.parameters:,}"),
        ("MACs at 512 × 512", f"{found.macs:,}"),
        ("CPU time, U-Net is 1", f"{found.cpu_ratio:.2f}"),
        ("memory a tile of 512 × 512", f"{found.tile_mb:.0f} MB"),
    ]
    if (tiling := found.tiling) is None:
        return lines
    return [
        *lines,
        ("exact from a halo of", "none is" if tiling.exact_halo is None else f"{tiling.exact_halo} px"),
        ("halo, untrained", f"{tiling.halo} px"),
        ("labels that differ there", f"{100 * tiling.disagreement:.3g} %"),
    ]


def _record(info: NetworkInfo, found: Facts | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(info), "measured": None if found is None else asdict(found)}


def _echo_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of equally many cells, columns aligned, the last one as long as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
