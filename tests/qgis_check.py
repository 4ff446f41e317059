#!/usr/bin/python3
"""Open outputs in a real QGIS, headless, and say what a user would see.

Runs under the *system* interpreter that owns the distribution package
``python3-qgis`` (not in the project's virtual environment)::

    QT_QPA_PLATFORM=offscreen /usr/bin/python3 qgis_check.py \
        --vector fields.gpkg --raster classes.tif --png map.png

Prints one JSON document on stdout:

* one entry per layer: validity, provider, CRS, extent, feature count or size,
  geometry types, where the style came from, renderer type, and the legend as
  the layer tree shows it (value, label, colour as ``#rrggbb`` + alpha);
* ``png``: path, size and number of distinct colours of the rendered map, and,
  for every legend colour, how many pixels of the picture carry it exactly.

A vector path may name a table: ``file.gpkg|layername=classes``.  ``.qlr`` and
``.qgs``/``.qgz`` files are accepted through ``--project`` and contribute all
their layers.  Exit status: 0 all layers valid, 1 some layer invalid, 2 usage,
3 QGIS not importable, 4 an ``--expect`` condition failed.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
_RUNTIME_DIR = None
if "XDG_RUNTIME_DIR" not in os.environ:  # Qt wants one with mode 0700
    _RUNTIME_DIR = tempfile.mkdtemp(prefix="qgis-check-")
    os.environ["XDG_RUNTIME_DIR"] = _RUNTIME_DIR


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    p.add_argument(
        "--vector", action="append", default=[], metavar="SOURCE", help="vector source; repeatable, drawn above rasters"
    )
    p.add_argument("--raster", action="append", default=[], metavar="FILE", help="raster source; repeatable")
    p.add_argument(
        "--project",
        action="append",
        default=[],
        metavar="FILE",
        help=".qgs/.qgz project or .qlr layer definition; repeatable",
    )
    p.add_argument("--style", metavar="QML", help="apply this style to every --vector layer by hand")
    p.add_argument("--png", metavar="FILE", help="render the map here")
    p.add_argument("--size", default="800x600", metavar="WxH")
    p.add_argument("--antialias", action="store_true", help="smooth edges (then exact-colour pixel counts mean little)")
    p.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="check on every layer, e.g. renderer=categorizedSymbol, "
        "crs=EPSG:4326, features=12, style_loaded=true; repeatable",
    )
    args = p.parse_args(argv)
    if not (args.vector or args.raster or args.project):
        p.error("give at least one --vector, --raster or --project")
    try:
        args.width, args.height = (int(v) for v in args.size.lower().split("x"))
    except ValueError:
        p.error("--size must look like 800x600")
    return args


def colour(c):
    return {"rgb": c.name(), "alpha": c.alpha()}


def vector_legend(renderer):
    """Legend rows of the renderer types a classification output may have."""
    kind = renderer.type()
    rows = []
    if kind == "categorizedSymbol":
        for cat in renderer.categories():
            value = cat.value()
            if value is not None and not isinstance(value, (str, int, float, bool, list)):
                value = None  # QVariant NULL
            rows.append(
                {"value": value, "label": cat.label(), "shown": cat.renderState(), **colour(cat.symbol().color())}
            )
        return renderer.classAttribute(), rows
    if kind == "graduatedSymbol":
        rows = [
            {"value": [r.lowerValue(), r.upperValue()], "label": r.label(), **colour(r.symbol().color())}
            for r in renderer.ranges()
        ]
        return renderer.classAttribute(), rows
    if kind == "singleSymbol":
        rows.append({"value": None, "label": "", **colour(renderer.symbol().color())})
        return None, rows
    if kind == "RuleRenderer":
        rows = [
            {"value": r.filterExpression(), "label": r.label(), **colour(r.symbol().color())}
            for r in renderer.rootRule().children()
        ]
    return None, rows


def raster_legend(renderer):
    kind = renderer.type()
    if kind == "multibandcolor":
        return [renderer.redBand(), renderer.greenBand(), renderer.blueBand()], []
    if kind == "singlebandgray":
        return renderer.grayBand(), []
    if kind == "paletted":
        items = renderer.classes()
    elif kind == "singlebandpseudocolor":
        items = renderer.shader().rasterShaderFunction().colorRampItemList()
    else:
        return None, []
    return renderer.band(), [{"value": item.value, "label": item.label, **colour(item.color)} for item in items]


def describe(layer, core, style_loaded):
    info = {"name": layer.name(), "source": layer.source(), "valid": layer.isValid(), "provider": layer.providerType()}
    if not layer.isValid():
        # layer.error() of a layer that failed to open crashes QGIS 3.22, so guess instead
        path = layer.source().split("|")[0]
        info["error"] = (
            "no such file: " + path if not os.path.exists(path) else "the provider could not open the source"
        )
        return info
    ext = layer.extent()
    info.update(
        crs=layer.crs().authid() or layer.crs().toWkt(),
        extent=[ext.xMinimum(), ext.yMinimum(), ext.xMaximum(), ext.yMaximum()],
        style_loaded=style_loaded,
    )
    if isinstance(layer, core.QgsVectorLayer):
        kinds, invalid, empty = {}, 0, 0
        for feat in layer.getFeatures():
            geom = feat.geometry()
            if geom.isNull() or geom.isEmpty():
                empty += 1
                continue
            name = core.QgsWkbTypes.displayString(geom.wkbType())
            kinds[name] = kinds.get(name, 0) + 1
            invalid += not geom.isGeosValid()
        renderer = layer.renderer()  # none where the file does not tell its geometry type
        attr, rows = vector_legend(renderer) if renderer else (None, [])
        info.update(
            kind="vector",
            features=layer.featureCount(),
            fields=[f"{f.name()}:{f.typeName()}" for f in layer.fields()],
            geometry=kinds,
            invalid_geometries=invalid,
            empty_geometries=empty,
            renderer=renderer.type() if renderer else None,
            attribute=attr,
            legend=rows,
        )
        if attr and info["renderer"] == "categorizedSymbol":
            seen = layer.uniqueValues(layer.fields().indexOf(attr))
            seen = {v for v in seen if isinstance(v, (str, int, float))}
            known = {r["value"] for r in rows}
            info["values_without_category"] = sorted(
                (v for v in seen if v not in known and str(v) not in map(str, known)), key=str
            )
    else:
        prov = layer.dataProvider()
        band, rows = raster_legend(layer.renderer())
        info.update(
            kind="raster",
            width=layer.width(),
            height=layer.height(),
            bands=layer.bandCount(),
            band_types=[
                core.Qgis.DataType(prov.dataType(i + 1)).name
                if hasattr(core.Qgis.DataType(prov.dataType(i + 1)), "name")
                else int(prov.dataType(i + 1))
                for i in range(layer.bandCount())
            ],
            nodata=[
                prov.sourceNoDataValue(i + 1) if prov.sourceHasNoDataValue(i + 1) else None
                for i in range(layer.bandCount())
            ],
            pyramids=[[p.xDim, p.yDim] for p in prov.buildPyramidList() if p.exists],
            renderer=layer.renderer().type(),
            attribute=band,
            legend=rows,
        )
        try:  # QGIS 3.30 and newer
            info["has_rat"] = bool(layer.attributeTableCount())
        except AttributeError:
            info["has_rat"] = None
    return info


def render(core, gui, qtcore, layers, args, report):
    settings = core.QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[0].crs())
    settings.setOutputSize(qtcore.QSize(args.width, args.height))
    settings.setBackgroundColor(gui.QColor(255, 255, 255))
    settings.setFlag(core.QgsMapSettings.Antialiasing, args.antialias)
    box = core.QgsRectangle()
    box.setMinimal()
    for layer in layers:
        tr = core.QgsCoordinateTransform(layer.crs(), settings.destinationCrs(), core.QgsProject.instance())
        box.combineExtentWith(tr.transformBoundingBox(layer.extent()))
    box.scale(1.05)
    settings.setExtent(box)
    job = core.QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    image = job.renderedImage()
    errors = [e.message for e in job.errors()]
    saved = image.save(args.png, "PNG")
    counts = {}
    for y in range(image.height()):
        for x in range(image.width()):
            c = image.pixel(x, y) & 0xFFFFFF
            counts[c] = counts.get(c, 0) + 1
    legend = {}
    for entry in report["layers"]:
        for row in entry.get("legend", []):
            legend[row["rgb"]] = counts.get(int(row["rgb"][1:], 16), 0)
    report["png"] = {
        "path": args.png,
        "written": saved,
        "size": [image.width(), image.height()],
        "distinct_colours": len(counts),
        "render_errors": errors,
        "background_pixels": counts.get(0xFFFFFF, 0),
        "legend_pixels": legend,
    }


def open_files(core, args, report):
    """Open what the command line names, describe it in ``report``, and return the valid layers."""
    layers = []

    def add(layer, style_loaded):
        report["layers"].append(describe(layer, core, style_loaded))
        if layer.isValid():
            core.QgsProject.instance().addMapLayer(layer)
            layers.append(layer)

    for src in args.vector:
        name = os.path.splitext(os.path.basename(src.split("|")[0]))[0]
        layer = core.QgsVectorLayer(src, name, "ogr")  # loads the default style itself
        loaded = False
        if layer.isValid():
            loaded = layer.loadDefaultStyle()[1]
            if args.style:
                loaded = layer.loadNamedStyle(args.style)[1]
        add(layer, loaded)
    for src in args.raster:
        name = os.path.splitext(os.path.basename(src))[0]
        layer = core.QgsRasterLayer(src, name, "gdal")
        add(layer, layer.loadDefaultStyle()[1] if layer.isValid() else False)
    for src in args.project:
        if src.lower().endswith(".qlr"):
            layers += open_definition(core, src, report)
        else:
            layers += open_project(core, src, report)
    return layers


def open_definition(core, src, report):
    """Open a layer definition as a user does, describe its layers in ``report``, and return the valid ones."""
    root = core.QgsProject.instance().layerTreeRoot()
    group = root.addGroup(src)
    done, message = core.QgsLayerDefinition.loadLayerDefinition(src, core.QgsProject.instance(), group)
    if not done:
        report["layers"].append({"source": src, "valid": False, "error": message})
        return []
    report["tree"] = tree(core, group)
    found = [node.layer() for node in group.findLayers()]
    report["layers"] += [describe(layer, core, True) for layer in found]
    return [layer for layer in found if layer.isValid()]


def tree(core, group):
    """Return what the layer tree shows below a group: names, whether they are switched on, and what is below them."""
    return [
        {
            "name": node.name(),
            "shown": node.itemVisibilityChecked(),
            **({} if core.QgsLayerTree.isLayer(node) else {"below": tree(core, node)}),
        }
        for node in group.children()
    ]


def open_project(core, src, report):
    """Open a project, describe its layers in ``report``, and return the valid ones."""
    project = core.QgsProject.instance()
    if not project.read(src):
        report["layers"].append({"source": src, "valid": False, "error": project.error() or "unreadable project"})
        return []
    report["project"] = {"title": project.title(), "crs": project.crs().authid()}
    layers = []
    for node in project.layerTreeRoot().findLayers():
        layer = node.layer()
        if layer is None:
            report["layers"].append({"name": node.name(), "valid": False, "error": "layer not resolved"})
            continue
        report["layers"].append(describe(layer, core, True))
        if layer.isValid():
            layers.append(layer)
    return layers


def unmet(expectations, report):
    """Return the ``--expect`` conditions that a layer does not meet."""
    pairs = [condition.partition("=")[::2] for condition in expectations]
    return [
        {"layer": entry.get("name"), "key": key, "want": want, "got": entry.get(key)}
        for key, want in pairs
        for entry in report["layers"]
        if str(entry.get(key)).lower() != want.lower()
    ]


def main(argv=None):
    args = parse_args(argv)
    try:
        from qgis import core
        from qgis.PyQt import QtCore, QtGui
    except ImportError as exc:
        print(json.dumps({"error": f"python3-qgis is not importable here: {exc}"}))
        return 3
    app = core.QgsApplication([], False)
    app.initQgis()
    report = {"qgis": core.Qgis.QGIS_VERSION, "layers": []}
    layers = open_files(core, args, report)
    if args.png and layers:
        render(core, QtGui, QtCore, layers, args, report)
    failures = unmet(args.expect, report)
    if failures:
        report["failed_expectations"] = failures
    all_valid = bool(report["layers"]) and all(e["valid"] for e in report["layers"])
    report["ok"] = all_valid and not failures
    print(json.dumps(report, indent=1, ensure_ascii=False))
    sys.stdout.flush()
    layers.clear()
    core.QgsProject.instance().clear()
    app.exitQgis()
    return 4 if failures else (0 if all_valid else 1)


if __name__ == "__main__":
    try:
        code = main()
    finally:
        if _RUNTIME_DIR:
            shutil.rmtree(_RUNTIME_DIR, ignore_errors=True)
    sys.stdout.flush()
    os._exit(code)  # Qt teardown at interpreter exit can crash
