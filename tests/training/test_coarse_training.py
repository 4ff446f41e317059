"""Learning from coarse labels: rasters in another CRS and polygons, areas, turns, mixing, several sources, faults."""

from __future__ import annotations

from itertools import pairwise

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from rasterio.warp import transform_bounds

from geoseg.bundle import read_bundle
from geoseg.errors import BundleError, ConfigError, GeosegWarning, LabelsError
from geoseg.grid import Window
from geoseg.training.coarse_module import loss_of, opened_tables
from geoseg.training.coarse_stats import coarse_stats
from geoseg.training.coarse_tables import NLCD_CLASSES
from geoseg.training.config import check
from geoseg.training.fit import train
from geoseg.training.labels import IGNORE
from geoseg.training.patches import Drawing, collate, read_patch, read_window
from geoseg.training.sampling import Place, count
from geoseg.training.site import open_sites
from geoseg.training.teacher import open_teacher, taught_by
from tests.conftest import write_raster
from tests.training.conftest import NORTH, PIXEL, WEST, same

CELL = 4.0  # metres: 8 pixels
BREAKS = [0.01, 0.2, 0.5, 0.8]


@pytest.fixture
def coarse(squares, tmp_path):
    """Cells of 4 m in EPSG:3857, classed by their share of squares: 0 none, 1 to 0.2, 2, 3, 4 from 0.8; 255 beyond."""
    with rasterio.open(squares[1]) as source:
        labels, bounds, crs = source.read(1), source.bounds, source.crs
    west, south, east, north = transform_bounds(crs, "EPSG:3857", *bounds)
    shape = (int((north - south) // CELL) + 2, int((east - west) // CELL) + 2)
    affine = Affine(CELL, 0, west - 1.3, 0, -CELL, north + 2.1)
    rows, cols = np.indices(labels.shape) + 0.5
    turn = pyproj.Transformer.from_crs(crs, 3857, always_xy=True)
    col, row = ~affine * turn.transform(WEST + cols * PIXEL, NORTH - rows * PIXEL)
    cells = np.floor(row).astype(int) * shape[1] + np.floor(col).astype(int)
    pixels, ones = (np.bincount(cells.ravel(), weights, shape[0] * shape[1]) for weights in (None, labels.ravel()))
    share = np.where(pixels >= 30, ones / np.maximum(pixels, 1), np.nan)
    values = np.where(np.isnan(share), 255, np.digitize(share, BREAKS)).astype(np.uint8).reshape(shape)
    return write_raster(tmp_path / "coarse.tif", values, transform=affine, crs="EPSG:3857", nodata=255)


@pytest.fixture
def table(squares, coarse, tmp_path):
    """The table measured on these cells."""
    path = tmp_path / "table.csv"
    coarse_stats(squares[0], coarse, squares[1], path, classes="background,square", min_blocks=1, min_labelled=0.8)
    return path


@pytest.fixture
def given(settings, squares, coarse, table):
    """Return a function that makes settings of a training on coarse labels alone."""

    def make(scene=None, source=None, **changed):
        scene = {"image": str(squares[0]), "coarse": str(coarse), **(scene or {})}
        source = {"table": str(table), "max_block_grad": 1.0, **(source or {})}
        data = {"scenes": [scene], "classes": "background,square"}
        return settings(data=data, targets="coarse", coarse={"sources": [source]}, **changed)

    return make


def site_of(settings):
    return open_sites(check(settings))[0][0]


def test_statistics_are_those_of_the_cells(table, squares, coarse, tmp_path):
    text = table.read_text().splitlines()
    assert text[0] == "code,name,weight,blocks,mean_background,mean_square,sd_background,sd_square"
    assert text[1].startswith("0,0,1,")
    assert text[1].endswith("1.000000,0.000000,0.000000,0.000000")
    by_code = {line.split(",")[0]: [float(v) for v in line.split(",")[3:]] for line in text[1:]}
    for code, (low, high) in {"1": (0.01, 0.2), "2": (0.2, 0.5), "3": (0.5, 0.8), "4": (0.8, 1)}.items():
        assert low <= by_code[code][2] <= high
        assert by_code[code][1] + by_code[code][2] == pytest.approx(1)
    counts = {line.split(",")[0]: int(line.split(",")[3]) for line in text[1:]}
    rarest = min(counts, key=counts.__getitem__)
    least = sorted(counts.values())[1]
    how = {"classes": "background,square", "min_blocks": least, "min_labelled": 0.8}
    with pytest.warns(
        GeosegWarning, match=rf"coarse class {rarest} has \d+ blocks, fewer than {least}: it is left out"
    ):
        few = coarse_stats(squares[0], coarse, squares[1], tmp_path / "few.csv", **how)
    assert set(few.codes) == set(counts) - {rarest}
    with pytest.warns(GeosegWarning, match=rf"coarse class {rarest} .*: its row is that of .*table.csv"):
        filled = coarse_stats(squares[0], coarse, squares[1], tmp_path / "all.csv", **how, fallback=str(table))
    assert set(filled.codes) == set(counts)


def test_every_patch_sees_the_cells_of_its_ground(given, coarse):
    site = site_of(given())
    with rasterio.open(coarse) as source:
        values, width = source.read(1), source.width
        into = ~source.transform
    turn = pyproj.Transformer.from_crs(32645, 3857, always_xy=True)
    for place in (Place(0, (60.0, 90.0)), Place(0, (50.5, 80.2), 1.2, 9.0, 0), Place(0, (60.0, 90.0), 1.0, 0.0, 6)):
        patch = read_patch(site, place, 48)
        blocks = patch.blocks[0]
        seen = blocks.numbers >= 0
        assert seen.mean() > 0.7
        assert (
            np.bincount(blocks.numbers[seen], minlength=len(blocks.ids))[np.unique(blocks.numbers[seen])] > 10
        ).all()
        if place.turn:
            continue
        # By hand: the position of each pixel's centre on the ground.
        rows, cols = np.indices((48, 48)) + 0.5
        onto = Affine.translation(place.centre[1], place.centre[0]) * Affine.rotation(place.angle)
        col, row = onto * Affine.scale(place.scale) * (cols - 24, rows - 24)
        col, row = into * turn.transform(WEST + col * PIXEL, NORTH - row * PIXEL)
        ids = np.floor(row).astype(int) * width + np.floor(col).astype(int)
        assert np.array_equal(blocks.ids[blocks.numbers[seen]], ids[seen])
        assert np.array_equal(blocks.classes[blocks.numbers[seen]], values.ravel()[ids[seen]])
    straight, turned = (read_patch(site, Place(0, (60.0, 90.0), turn=t), 48).blocks[0] for t in (0, 6))
    assert np.array_equal(np.rot90(straight.numbers[:, ::-1], 2), turned.numbers)


def test_cut_blocks_and_those_outside_of_the_area_do_not_count(given):
    loose, strict = (
        read_window(site_of(given({"train": [0.25, 0.75]}, {"min_block_fraction": f})), Window(20, 30, 64, 64)).blocks[
            0
        ]
        for f in (0.0, 0.95)
    )
    assert (loose.numbers[:, :18] == -1).all()  # columns 30 to 47 of 192 lie before the area
    assert (loose.numbers[:, 18:] >= 0).all()
    assert (strict.numbers >= 0).sum() < (loose.numbers >= 0).sum()
    whole = np.unique(strict.numbers[strict.numbers >= 0])
    edge = np.concatenate([strict.numbers[0], strict.numbers[-1], strict.numbers[:, 18], strict.numbers[:, -1]])
    assert len(whole) > 10
    assert (edge >= 0).sum() < len(edge) / 3
    eroded = read_window(site_of(given({}, {"block_erode": 2})), Window(20, 30, 64, 64)).blocks[0].numbers
    full = read_window(site_of(given()), Window(20, 30, 64, 64)).blocks[0].numbers
    assert 0 < (eroded >= 0).sum() < 0.5 * (full >= 0).sum()


def test_batches_hold_the_blocks_of_all_patches(given):
    site = site_of(given())
    patches = [read_window(site, Window(row, 0, 32, 32)) for row in (0, 96, 400)]
    batch = collate(patches, [0, 1, 2])
    assert batch["blocks_0"].shape == (3, 32, 32)
    assert batch["blocks_0"].dtype == torch.int64
    assert (batch["blocks_0"][2] == -1).all()
    assert len(batch["block_classes_0"]) == 3
    assert (batch["labels"] == IGNORE).all()
    for i in range(2):
        numbers = batch["blocks_0"][i]
        assert (batch["block_classes_0"][i][numbers[numbers >= 0]] >= 0).all()


def test_places_are_drawn_by_coarse_class(given):
    site = site_of(given())
    counted = count(site, 6, 32, coarse=True)
    assert (counted.pixels[:5].sum((1, 2)) > 0).all()
    assert counted.pixels[5].sum() == 0
    assert counted.pixels.sum() > 0.9 * 128 * 192


def test_a_map_of_the_world_is_coarse_labels_too(given, tmp_path):
    """To UTM its bounds cannot be transformed, the scene's can."""
    wide = np.full((180, 360), 7, np.uint8)
    world = write_raster(tmp_path / "world.tif", wide, transform=Affine(1, 0, -180, 0, -1, 90), crs="EPSG:4326")
    (tmp_path / "seven.csv").write_text("code,mean_square,sd_square\n7,0.12,0.05\n")
    made = given({"coarse": str(world)}, {"table": str(tmp_path / "seven.csv"), "min_block_fraction": 0})
    blocks = read_window(site_of(made), Window(0, 0, 64, 64)).blocks[0]
    assert (blocks.numbers == 0).all()
    assert blocks.ids.tolist() == [62 * 360 + 265]  # 27.6 degrees north, 85.5 degrees east


def test_the_preset_for_the_national_land_cover_database(given, tmp_path):
    """Codes without figures (no data, snow) teach nothing, and are no fault."""
    codes = np.array([0, 11, 12, 21, 22, 24, 41, 42, 81, 90], np.uint8)
    cells = codes[np.arange(14 * 20).reshape(14, 20) % len(codes)]
    nlcd = write_raster(tmp_path / "nlcd.tif", cells, transform=Affine(5, 0, WEST, 0, -5, NORTH))
    made = given({"coarse": str(nlcd)}, {"table": "nlcd"})
    made["data"]["classes"] = NLCD_CLASSES
    site = site_of(made)
    blocks = read_window(site, Window(0, 0, 128, 192)).blocks[0]
    found = site.coarse[0][0].rows
    kept = {found[str(code)] for code in codes if code not in (0, 12)}
    assert set(blocks.classes) == kept
    report = train(made, tmp_path / "m.safetensors")
    assert report.steps == 12
    assert [item.name for item in read_bundle(report.model).description.classes][3] == "impervious"


@pytest.mark.parametrize("grouping", ["block", "class"])
def test_no_fine_label_is_needed(given, squares, tmp_path, grouping):
    scene = {"labels": str(squares[1]), "train": [0, 0.75], "validation": [0.75, 1]}
    made = given(
        scene,
        {"grouping": grouping, "least_deviation": 0.05},
        training={"steps": 60, "lr": 0.02},
        augment={"flips": True, "brightness": 0, "contrast": 0, "gamma": 0},
    )
    made["coarse"]["fine_weight"] = 0
    told = []
    report = train(made, tmp_path / "m.safetensors", tell=told.append)
    assert report.figures["iou"]["square"] > 0.8
    assert "5 coarse classes of" in told[0]
    record = read_bundle(tmp_path / "m.safetensors").description.training["config"]
    assert record["targets"] == "coarse"
    assert record["data"]["scenes"][0]["coarse"] == ["coarse.tif"]
    assert record["coarse"]["sources"][0]["table"] == "table.csv"


def test_a_network_learns_from_one_that_learned_before(given, squares, tmp_path):
    """From a table that says the same of every cell nothing can be learned: what the network knows, it was taught."""
    few = given(network={"name": "local-statistics", "options": {"scales": [1, 2]}}, training={"steps": 25, "lr": 0.05})
    train(few, tmp_path / "few.safetensors")
    (tmp_path / "blind.csv").write_text("code,mean_square,sd_square\n" + "".join(f"{z},0.2,0.4\n" for z in range(5)))
    scene = {"labels": str(squares[1]), "train": [0, 0.75], "validation": [0.75, 1]}
    made = given(scene, {"table": str(tmp_path / "blind.csv")}, training={"steps": 25})
    made["coarse"] |= {"fine_weight": 0, "teacher": str(tmp_path / "few.safetensors")}
    with pytest.warns(GeosegWarning, match="the network cannot learn from them"):
        report = train(made, tmp_path / "taught.safetensors")
    assert report.figures["iou"]["square"] > 0.8
    record = read_bundle(tmp_path / "taught.safetensors").description.training["config"]
    assert record["coarse"]["teacher"] == "few.safetensors"


@pytest.fixture
def teacher(given, tmp_path):
    train(given(), tmp_path / "m.safetensors")
    config = check(given())
    losses = [loss_of(*each) for each in zip(opened_tables(config), config.coarse.sources, strict=True)]
    return open_teacher(config, str(tmp_path / "m.safetensors"), 3, [site_of(given())], losses)


def test_a_teacher_labels_the_pixels_of_blocks_and_meets_their_shares(given, teacher):
    site = site_of(given())
    batch = collate([read_window(site, Window(0, col, 64, 64)) for col in (0, 100)], [0, 1])
    labels = teacher.labels(batch)
    blocks, classes = batch["blocks_0"], batch["block_classes_0"]
    assert torch.equal(labels == IGNORE, blocks < 0)
    kinds = classes.gather(1, blocks.flatten(1).clamp(min=0)).view(blocks.shape)
    none, many = (float((labels == 1)[(blocks >= 0) & (kinds == kind)].float().mean()) for kind in (0, 4))
    assert none < 0.1
    assert many > 0.7


@pytest.mark.parametrize("axes", [(-1,), (-2,), (-2, -1)])
def test_a_teacher_labels_mirrored_patches_alike(given, teacher, axes):
    batch = collate([read_window(site_of(given()), Window(0, 50, 64, 64))], [0])
    mirrored = {key: value.flip(axes) if value.ndim > 2 else value for key, value in batch.items()}
    labels = teacher.labels(batch)
    assert (labels == 1).any()
    differ = teacher.labels(mirrored).flip(axes) != labels
    assert differ.float().mean() < 1e-3  # where two classes are alike but for rounding


def test_patches_hold_what_a_teacher_says_of_their_ground(given, teacher):
    """However a patch lies, with the shares of whole cells although it cuts them, and in place of the cells."""
    drawing = Drawing([site_of(given())], None, 32, 0.25)
    site = taught_by(teacher, drawing).sites[0]
    plain = read_window(site, Window(20, 40, 64, 64))
    assert not plain.blocks
    whole = teacher.window(0, drawing.sites[0], Window(-128, -128, 768, 768))[148:212, 168:232]
    assert np.array_equal(plain.taught, whole)
    assert {0, 1} <= set(np.unique(whole).tolist())
    inside_a_cell = read_window(site, Window(30, 60, 4, 4))
    assert np.array_equal(inside_a_cell.taught, whole[10:14, 20:24])
    turned = read_patch(site, Place(0, (52.0, 72.0), 1.0, 0.0, 5), 64)
    assert np.array_equal(turned.taught, np.rot90(plain.taught[:, ::-1]))
    assert collate([plain, turned], [0, 1])["taught"].shape == (2, 64, 64)
    smaller = read_patch(site, Place(0, (52.0, 72.0), 0.5, 0.0, 0), 64)
    inner = np.kron(plain.taught[16:48, 16:48], np.ones((2, 2), np.uint8))
    assert np.array_equal(smaller.taught, inner)


def test_teachers_that_do_not_fit_are_refused(given, tmp_path):
    train(given(), tmp_path / "m.safetensors")
    for data, message in (
        ({"classes": "background,roof"}, "coarse.teacher .*m.safetensors has the classes background, square where"),
        ({"bands": [1, 2]}, "coarse.teacher .*m.safetensors is for 3 bands where the scenes give 2"),
    ):
        made = given()
        made["data"] |= data
        made["coarse"]["teacher"] = str(tmp_path / "m.safetensors")
        if "classes" in data:
            (tmp_path / "roofs.csv").write_text((tmp_path / "table.csv").read_text().replace("square", "roof"))
            made["coarse"]["sources"][0]["table"] = str(tmp_path / "roofs.csv")
        with pytest.raises(ConfigError, match=message):
            train(made, tmp_path / "n.safetensors")
    made = given()
    made["coarse"]["teacher"] = str(tmp_path / "none.safetensors")
    with pytest.raises(BundleError, match=r"none\.safetensors"):
        train(made, tmp_path / "n.safetensors")


def test_equal_runs_give_equal_models(given, tmp_path):
    for name in ("a", "b"):
        train(given(), tmp_path / f"{name}.safetensors")
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    train(given({}, {"form": "interval"}), tmp_path / "c.safetensors")
    assert not same(tmp_path / "a.safetensors", tmp_path / "c.safetensors")


@pytest.fixture
def districts(squares, tmp_path):
    """Districts in degrees, each with the name of a coarse class."""
    edges = np.linspace(0, 192, 7)
    with rasterio.open(squares[1]) as source:
        labels = source.read(1)
    shapes, kinds = [], []
    for left, right in pairwise(edges):
        for top in (0, 64):
            share = labels[top : top + 64, int(left) : int(right)].mean()
            west, east = WEST + left * PIXEL, WEST + right * PIXEL
            shapes.append(shapely.box(west, NORTH - (top + 64) * PIXEL, east, NORTH - top * PIXEL))
            kinds.append("dense" if share > 0.13 else "open")
    frame = geopandas.GeoDataFrame({"kind": kinds}, geometry=shapes, crs=32645).to_crs(4326)
    frame.to_file(tmp_path / "districts.gpkg")
    table = tmp_path / "kinds.csv"
    table.write_text("code,low_square,high_square\ndense,0.13,0.4\nopen,0,0.13\n")
    return tmp_path / "districts.gpkg", table, kinds


def test_polygons_are_blocks_too(given, districts, tmp_path):
    path, table, kinds = districts
    made = given({"coarse": str(path)}, {"table": str(table), "class_field": "kind", "min_block_fraction": 0.2})
    blocks = read_window(site_of(made), Window(0, 0, 128, 96)).blocks[0]
    assert len(blocks.ids) == 6
    assert [["dense", "open"][row] for row in blocks.classes] == [kinds[i] for i in blocks.ids]
    assert (np.bincount(blocks.numbers[blocks.numbers >= 0]) > 1900).all()
    areas = site_of(made).coarse[0][0].areas(blocks, site_of(made).scene.geobox.affine)
    np.testing.assert_allclose(areas, 64 * 32, rtol=1e-3)
    train(made, tmp_path / "m.safetensors")
    with pytest.raises(LabelsError, match="name the attribute that says their coarse class as class_field"):
        site_of(given({"coarse": str(path)}, {"table": str(table)}))


def test_several_sources_and_fine_labels_add_up(given, districts, squares, coarse, tmp_path):
    made = given()
    first = made["coarse"]["sources"][0]
    second = {"table": str(districts[1]), "class_field": "kind", "weight": 0.5, "min_block_fraction": 0.1}
    made["coarse"] = {"sources": [first, second], "fine_weight": 1.0}
    made["data"]["scenes"] = [
        {"image": str(squares[0]), "coarse": [str(coarse), str(districts[0])], "train": [0, 0.5]},
        {"image": str(squares[0]), "labels": str(squares[1]), "train": [0.5, 1]},
    ]
    sites = open_sites(check(made))[0]
    patches = [read_window(site, Window(0, 80, 64, 64)) for site in sites]
    assert [sorted(patch.blocks) for patch in patches] == [[0, 1], []]
    batch = collate(patches, [0, 1])
    assert {"blocks_0", "blocks_1", "block_classes_0", "block_classes_1"} <= set(batch)
    assert (batch["blocks_1"][1] == -1).all()
    assert (batch["labels"][0] == IGNORE).all()
    assert (batch["labels"][1] != IGNORE).any()
    report = train(made, tmp_path / "m.safetensors")
    assert report.steps == 12


def test_faults_are_told_before_training(given, squares, coarse, table, tmp_path):
    far = write_raster(tmp_path / "far.tif", np.ones((9, 9), np.uint8), transform=Affine(30, 0, 9e5, 0, -30, 9e5))
    fine = write_raster(tmp_path / "fine.tif", np.ones((128, 192), np.uint8))
    short = tmp_path / "short.csv"
    short.write_text("".join(f"{line}\n" for line in table.read_text().splitlines()[:-1]))
    for scene, source, message in (
        ({"coarse": str(far)}, {}, r"far.tif does not meet the scene .*squares.tif"),
        ({"coarse": str(fine)}, {}, r"a cell of .*fine.tif covers 1 pixels of .* no coarse label"),
        ({}, {"table": str(short)}, r"has the coarse class 4, of which the table says nothing \(it has 0, 1, 2, 3\)"),
        ({}, {"table": str(tmp_path / "none.csv")}, "cannot be read as a table of coarse classes"),
    ):
        with pytest.raises(LabelsError, match=message):
            train(given(scene, source), tmp_path / "m.safetensors")
    train(given({}, {"table": str(short), "ignore": [4]}), tmp_path / "ok.safetensors")
    with pytest.warns(GeosegWarning, match="1 coarse classes .* 0.000: below 0.05 the network cannot learn"):
        train(given({}, {"ignore": [], "weights": {0: 0, 1: 0, 2: 0, 4: 0}}), tmp_path / "blind.safetensors")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": "fine"}, "data.scenes.0.coarse is given, but targets is fine"),
        ({"coarse": {"sources": []}}, "targets is coarse: give coarse.sources"),
        ({"mixing": {"alpha": 0.4}}, "mixing.alpha is 0.4, but blocks do not mix"),
        ({"network": {"name": "cascadepsp"}, "loss": "ce"}, "targets is coarse, but network cascadepsp refines"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, changed, message, tmp_path):
    made = given()
    made.update(changed)
    with pytest.raises(ConfigError, match=message):
        train(made, tmp_path / "m.safetensors")


def test_a_teacher_is_for_coarse_targets(settings):
    with pytest.raises(ConfigError, match="coarse is given, but targets is fine"):
        check(settings(coarse={"teacher": "few.safetensors"}))


def test_scenes_must_say_what_they_have(given, squares, coarse):
    for scene, message in (
        ({"coarse": [str(coarse), None]}, "has 2 files for the 1 coarse.sources"),
        ({"validation": [0.5, 1]}, "data.scenes.0.labels is missing: without them there is no validation"),
        ({"coarse": [None]}, "data.scenes.0.labels is missing"),
        ({"coarse": [], "labels": str(squares[1])}, "no scene has a file for coarse.sources.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(given(scene))
    made = given()
    made["coarse"]["fine_weight"] = 0
    made["loss"] = "dice"
    with pytest.raises(ConfigError, match=r"loss is 'dice', but coarse.fine_weight is 0"):
        train(made, "m.safetensors")
