"""Burnt polygons against a plain reference, pixel by pixel, on north-up, south-up, turned and geographic grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from geoseg.scene import Scene, open_scene
from geoseg.training.config import DataConfig, check
from geoseg.training.labels import IGNORE, open_labels
from geoseg.training.patches import Drawing
from geoseg.training.polygons import burn
from geoseg.training.sampling import Sampler, count
from geoseg.training.site import open_sites
from tests.conftest import write_raster
from tests.training.conftest import NORTH, WEST

HEIGHT, WIDTH = 24, 31
UTM = "EPSG:32645"
GRIDS: dict[str, tuple[Affine, str]] = {
    "north up": (Affine(0.5, 0, WEST, 0, -0.5, NORTH), UTM),
    "south up": (Affine(0.5, 0, WEST, 0, 0.5, NORTH), UTM),
    "turned": (Affine.translation(WEST, NORTH) * Affine.rotation(-33) * Affine.scale(0.5, -0.5), UTM),
    "geographic": (Affine(5e-6, 0, 85.52, 0, -5e-6, 27.63), "EPSG:4326"),
}
# Pixels by which coordinates may move on their way through another CRS and a file.
MOVED = 2e-3

number = st.floats(-4, 34, allow_nan=False)


@st.composite
def triangles(draw: Any) -> list[shapely.Polygon]:
    """Draw one to four triangles in pixels, (col, row)."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        shape = shapely.Polygon(draw(st.lists(st.tuples(number, number), min_size=3, max_size=3)))
        if shape.is_valid and shape.area > 1:
            found.append(shape)
    return [*found, shapely.box(1.3, 2.3, 6.6, 5.7)]


@pytest.fixture(scope="module", params=GRIDS)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    affine, crs = GRIDS[request.param]
    path = tmp_path_factory.mktemp("grid") / "scene.tif"
    return open_scene(write_raster(path, np.ones((1, HEIGHT, WIDTH), np.uint8), transform=affine, crs=crs))


def written(shapes: list[Any], scene: Scene, **columns: Any) -> str:
    """Write polygons in pixels of the scene as ground, in yet another CRS."""
    affine = scene.geobox.affine
    ground = [shapely.transform(s, lambda xy: np.column_stack(affine * (xy[:, 0], xy[:, 1]))) for s in shapes]
    path = Path(scene.path).with_name("labels.fgb")
    frame = geopandas.GeoDataFrame(columns, geometry=ground, crs=scene.geobox.crs.to_wkt()).to_crs(32644)
    frame.to_file(path, SPATIAL_INDEX="NO")
    return str(path)


def burnt(path: str, scene: Scene, classes: str = "background,a,b,c", **more: Any) -> np.ndarray:
    given = {"scenes": [{"image": "i", "labels": "l"}], "classes": classes, **more}
    labels = open_labels(path, scene, DataConfig.model_validate(given))
    return labels.burn(scene.geobox.affine, scene.shape)


def centres() -> np.ndarray:
    row, col = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return shapely.points(col, row)


def boxes(margin: float) -> np.ndarray:
    row, col = np.mgrid[:HEIGHT, :WIDTH]
    return shapely.box(col - margin, row - margin, col + 1 + margin, row + 1 + margin)


RUN = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(shapes=triangles(), data=st.data())
@RUN
def test_the_last_polygon_that_holds_the_centre(scene: Scene, shapes: list[Any], data: Any) -> None:
    names = [data.draw(st.sampled_from(["a", "b", "c", "hidden", None])) for _ in shapes]
    labels = burnt(written(shapes, scene, kind=names), scene, class_field="kind", ignore=["hidden"])
    expected = np.zeros((HEIGHT, WIDTH), int)
    near = np.zeros((HEIGHT, WIDTH), bool)
    known = {"a": 1, "b": 2, "c": 3}
    # What is not known hides what is, wherever it stands in the file.
    for shape, name in sorted(zip(shapes, names, strict=True), key=lambda item: item[1] not in known):
        expected[shapely.contains(shape, centres())] = known.get(name, IGNORE)
        near |= shapely.distance(shape.boundary, centres()) < MOVED
    assert np.array_equal(labels[~near], expected[~near])
    assert near.mean() < 0.1


@given(shapes=triangles())
# Vertices on corners of pixels, which do not stay there on their way through another CRS.
@example(shapes=[shapely.Polygon([(0, 0), (0, 1), (3, 0)]), shapely.box(1.3, 2.3, 6.6, 5.7)])
@RUN
def test_all_touched_takes_every_pixel_that_is_met(scene: Scene, shapes: list[Any]) -> None:
    labels = burnt(written(shapes, scene), scene, "background,a", all_touched=True) == 1
    whole = shapely.union_all(shapes)
    surely, perhaps = (shapely.intersects(boxes(margin), whole) for margin in (-MOVED, MOVED))
    assert (labels | ~surely).all()
    assert (perhaps | ~labels).all()


@pytest.mark.parametrize("all_touched", [False, True])
def test_polygons_along_pixels_take_those_alone(all_touched: bool) -> None:
    corner = shapely.box(1, 1, 4, 5)
    hole = shapely.Polygon(shapely.box(3, 4, 9, 9).exterior, [shapely.box(5, 6, 7, 8).exterior])
    found = burn(
        np.array([corner, hole], object),
        np.array([3, 7], np.uint8),
        Affine.identity(),
        (12, 10),
        fill=9,
        all_touched=all_touched,
    )
    expected = np.full((12, 10), 9)
    expected[1:5, 1:4] = 3
    expected[4:9, 3:9] = 7
    expected[6:8, 5:7] = 9
    assert found.tolist() == expected.tolist()


@given(shapes=triangles(), width=st.floats(1, 6), kept=st.booleans())
@RUN
def test_borders_are_where_two_are_near(scene: Scene, shapes: list[Any], width: float, kept: bool) -> None:
    shapes = [shape for i, shape in enumerate(shapes) if not any(shape.intersects(other) for other in shapes[:i])]
    shapes.append(shapely.box(7.1, 2.3, 9.9, 5.7))
    metres = width * scene.resolution[0]
    more = {"border_class": "edge", "class_field": "kind"} if kept else {}
    path = written(shapes, scene, kind=["a"] * len(shapes))
    border = 2 if kept else IGNORE
    labels = burnt(path, scene, "background,a,edge" if kept else "background,a", border_m=metres, **more)
    # Pixels of a geographic grid are no squares on the ground; distances are in those of x.
    apart = np.stack([shapely.distance(shape, centres()) for shape in shapes])
    second = np.sort(apart, axis=0)[1]
    # A rounded corner is made of straight pieces.
    surely, never = second < 0.97 * width / 2 - MOVED, second > width / 2 + MOVED
    assert (labels[surely] == border).all()
    assert (labels[never] != border).all()
    inside = shapely.contains(shapely.union_all(shapes).buffer(-MOVED), centres()) & never
    assert (labels[inside] == 1).all()


def test_scenes_of_several_grids_in_one_training(tmp_path: Path) -> None:
    """Bright where their labels are, whatever the CRS, pixel size and direction; patches are of one ground size."""
    grids = {
        "turned": (Affine.translation(WEST, NORTH) * Affine.rotation(25) * Affine.scale(0.5, -0.5), UTM),
        "geographic": (Affine(2e-6, 0, 85.52, 0, -2e-6, 27.63), "EPSG:4326"),
        "mercator": (Affine(1.1, 0, 9_520_000, 0, -1.1, 3_202_900), "EPSG:3857"),
    }
    scenes = []
    for name, (affine, crs) in grids.items():
        shape = shapely.Polygon([(20, 30), (150, 40), (120, 170), (60, 100)])
        mask = rasterio.features.rasterize([shape], (200, 200), transform=Affine.scale(1.0000001))
        image = write_raster(
            tmp_path / f"{name}.tif", np.stack([mask * 200 + 10] * 3).astype(np.uint8), transform=affine, crs=crs
        )
        placed = shapely.transform(shape, lambda xy, affine=affine: np.column_stack(affine * (xy[:, 0], xy[:, 1])))
        labels = tmp_path / f"{name}.geojson"
        geopandas.GeoDataFrame(geometry=[placed], crs=crs).to_crs(4326).to_file(labels)
        scenes.append({"image": str(image), "labels": str(labels)})
    config = check({"data": {"scenes": scenes, "classes": "background,thing", "resolution": 0.8}})
    sites = open_sites(config)[0]
    for site in sites:
        assert site.scene.resolution == pytest.approx((0.8, 0.8), rel=0.02)
    counts = [count(site, 2, 32) for site in sites]
    sampler = Sampler(counts, [c.name for c in config.data.table()], config.sampling, config.augment, 0)
    drawing = Drawing(sites, sampler, 32, 0.25)
    met = np.zeros((3, 2))
    for number in range(60):
        patch, site = drawing[number], drawing.place(number).site
        known = patch.labels != IGNORE
        differ = known & ((patch.pixels[0] > 110) != (patch.labels == 1))
        assert differ.sum() <= 0.06 * known.sum() + 4
        met[site] += [(patch.labels == value).sum() for value in (0, 1)]
    assert (met > 0).all()


def test_a_raster_in_another_crs_gives_its_nearest_pixels(scene: Scene) -> None:
    import pyproj

    turn = pyproj.Transformer.from_crs(scene.geobox.crs.to_wkt(), 32644, always_xy=True)
    corners = np.array([scene.geobox.affine * xy for xy in ((0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT))])
    x, y = turn.transform(*corners.T)
    place = Affine(0.4, 0, min(x) - 2, 0, -0.4, max(y) + 2)
    shape = (int((max(y) - min(y) + 4) / 0.4), int((max(x) - min(x) + 4) / 0.4))
    values = np.random.default_rng(5).choice([0, 1, 2, 9, 255], shape).astype(np.uint8)
    path = write_raster(Path(scene.path).with_name("labels.tif"), values, transform=place, crs="EPSG:32644")
    labels = burnt(str(path), scene, "background,a,b", ignore=[9])

    row, col = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    at = ~place * turn.transform(*(scene.geobox.affine * (col, row)))
    found = values[np.floor(at[1]).astype(int), np.floor(at[0]).astype(int)]
    expected = np.where(found == 9, IGNORE, found)
    # GDAL finds places to an eighth of a pixel.
    sure = np.minimum(*(np.minimum(part % 1, 1 - part % 1) for part in at)) > 0.15
    assert sure.mean() > 0.4
    assert np.array_equal(labels[sure], expected[sure])
