"""Polygons from blocks of labels: right as point sets, noded alike, and the same for any blocks."""

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geoseg.errors import LabelsError
from geoseg.grid import Window
from geoseg.vector.label_map import LabelArray
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.polygons import LabelBlock, polygonize
from geoseg.vector.stitch import Stitcher

NODATA = 255


def run(labels, confidence=None, **options):
    """All polygons in the order of their first pixels."""
    given = {name: options.pop(name) for name in ("size", "cuts") if name in options}
    everything = PixelPolygons.joined(polygonize(LabelArray(labels, confidence, **given), **options))
    return everything.taken(np.lexsort((everything.first_pixel, everything.feature)))


def rows_of(found):
    """Everything there is to know of each polygon."""
    names = ("first_pixel", "class_id", "pixels", "confidence_sum", "confidence_pixels", "feature")
    columns = (getattr(found, name).tolist() for name in names)
    return list(zip(*columns, shapely.to_wkb(found.geometry).tolist(), strict=True))


def polygons(labels, confidence=None, **options):
    return rows_of(run(labels, confidence, **options))


def regions(labels, ignored):
    """Plain flood fill: for each 4-connected region its first pixel, label and pixels, in row-major order."""
    height, width = labels.shape
    seen = np.isin(labels, list(ignored))
    found = []
    for start in range(height * width):
        row, col = divmod(start, width)
        if seen[row, col]:
            continue
        seen[row, col] = True
        stack, members = [(row, col)], []
        while stack:
            r, c = stack.pop()
            members.append((r, c))
            for y, x in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if 0 <= y < height and 0 <= x < width and not seen[y, x] and labels[y, x] == labels[row, col]:
                    seen[y, x] = True
                    stack.append((y, x))
        found.append((start, int(labels[row, col]), members))
    return found


def blobs(shape, classes, seed, passes=3):
    rng = np.random.default_rng(seed)
    fields = rng.random((classes, *shape))
    for _ in range(passes):
        fields = sum(np.roll(fields, shift, axis) for axis in (1, 2) for shift in (-1, 0, 1))
    return fields.argmax(axis=0).astype(np.uint8)


def nested(size):
    row, col = np.indices((size, size))
    return (np.minimum.reduce([row, col, size - 1 - row, size - 1 - col]) % 3).astype(np.uint8)


def spiral(size):
    """One path, one pixel wide, that winds inwards through its own surroundings."""
    labels = np.zeros((size, size), np.uint8)
    row, col, step, turn = 0, 0, (0, 1), 0
    labels[0, 0] = 1
    while turn < 2:
        ahead = (row + 2 * step[0], col + 2 * step[1])
        near = (row + step[0], col + step[1])
        free = 0 <= near[0] < size and 0 <= near[1] < size and not labels[near]
        if free and not (0 <= ahead[0] < size and 0 <= ahead[1] < size and labels[ahead]):
            row, col = near
            labels[near] = 1
            turn = 0
        else:
            step = (step[1], -step[0])
            turn += 1
    return labels


def with_nodata(labels, share, seed):
    labels = labels.copy()
    labels[np.random.default_rng(seed).random(labels.shape) < share] = NODATA
    return labels


RASTERS = {
    "noise": np.random.default_rng(1).integers(0, 3, (33, 41)).astype(np.uint8),
    "two_classes_of_noise": np.random.default_rng(2).integers(0, 2, (40, 29)).astype(np.uint8),
    "blobs": blobs((60, 47), 4, 3),
    "blobs_with_nodata": with_nodata(blobs((45, 60), 3, 4), 0.1, 5),
    "checkerboard": (np.indices((17, 18)).sum(axis=0) % 2).astype(np.uint8),
    "nested": nested(31),
    "spiral": spiral(27),
    "spiral_alone": np.where(spiral(24) == 1, 1, NODATA).astype(np.uint8),
    "one_pixel": np.zeros((1, 1), np.uint8),
    "one_row": np.array([[0, 0, 1, 1, 0, 2]], np.uint8),
    "one_column": np.array([[0], [0], [1], [1], [0]], np.uint8),
    "constant": np.full((19, 23), 7, np.uint8),
    "empty": np.full((9, 9), NODATA, np.uint8),
}


@pytest.fixture(params=RASTERS)
def labels(request):
    return RASTERS[request.param]


def confidence_of(labels):
    return np.random.default_rng(9).integers(0, 1001, labels.shape).astype(np.uint16)


def pieces_of(data, length, most=4):
    inner = data.draw(st.sets(st.integers(1, max(1, length - 1)), max_size=most))
    return tuple(sorted({0, length} | {cut for cut in inner if cut < length}))


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_blocks_and_workers_make_no_difference(labels, size, connectivity):
    labels = labels[: 16 * size, : 18 * size]
    confidence = confidence_of(labels)
    whole = polygons(labels, confidence, connectivity=connectivity)
    assert polygons(labels, confidence, size=size, connectivity=connectivity) == whole
    assert polygons(labels, confidence, size=size, connectivity=connectivity, workers=2) == whole


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("size", [5, 10_000])
def test_same_point_sets_as_gdal_on_the_whole_array(labels, size, connectivity):
    found = run(labels, size=size, connectivity=connectivity)
    pairs = rasterio.features.shapes(labels, mask=labels != NODATA, connectivity=connectivity)
    # GDAL joins the parts of an 8-connected region in points, which no polygon may.
    expected = [(shapely.make_valid(shapely.geometry.shape(shape)), value) for shape, value in pairs]
    features, first = np.unique(found.feature, return_index=True)
    mine = [shapely.union_all(found.geometry[found.feature == feature]) for feature in features]
    assert len(mine) == len(expected)
    tree = shapely.STRtree(mine) if mine else None
    for other, value in expected:
        best = min(tree.query(other), key=lambda i: mine[i].symmetric_difference(other).area)
        assert mine[best].symmetric_difference(other).area == 0
        assert found.class_id[first[best]] == value


@pytest.mark.parametrize("size", [6, 10_000])
def test_they_are_a_valid_coverage_and_count_their_pixels(labels, size):
    confidence = confidence_of(labels)
    regions_found = regions(labels, {NODATA})
    found = run(labels, confidence, size=size)
    geometry = found.geometry
    assert found.first_pixel.tolist() == [first for first, *_ in regions_found]
    assert found.class_id.tolist() == [value for _, value, _ in regions_found]
    assert shapely.is_valid(geometry).all()
    assert len(geometry) == 0 or shapely.coverage_is_valid(geometry)
    for area, pixels, total, known, (_, _, members) in zip(
        shapely.area(geometry),
        found.pixels,
        found.confidence_sum,
        found.confidence_pixels,
        regions_found,
        strict=True,
    ):
        assert pixels == known == len(members) == area
        assert total == sum(int(confidence[member]) for member in members)
    assert shapely.area(shapely.union_all(geometry)) == (labels != NODATA).sum()


def test_drawn_again_they_give_the_labels_back(labels):
    found = run(labels, size=4)
    drawn = np.full(labels.shape, NODATA, labels.dtype)
    if len(found):
        shapes = zip(found.geometry, found.class_id.tolist(), strict=True)
        drawn = rasterio.features.rasterize(shapes, labels.shape, fill=NODATA, dtype=labels.dtype)
    assert (drawn == labels).all()


def test_vertices_are_turns_or_nodes_and_rings_start_and_run_as_promised(labels):
    padded = np.pad(labels, 1, constant_values=NODATA).astype(int)
    found = run(labels, size=5)
    for polygon, first in zip(found.geometry, found.first_pixel.tolist(), strict=True):
        starts = []
        for number, ring in enumerate([polygon.exterior, *polygon.interiors]):
            corners = [(int(x), int(y)) for x, y in ring.coords[:-1]]
            assert len(set(corners)) == len(corners)
            assert corners[0] == min(corners, key=lambda corner: corner[::-1])
            moves = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
            upright = [move[0] == 0 for move in moves]
            assert upright[0] == (number == 0)
            assert moves[0] > (0, 0)
            for i, (x, y) in enumerate(corners):
                if upright[i] == upright[i - 1]:  # straight on: then three regions meet here
                    around = {*padded[y : y + 2, x : x + 2].ravel().tolist()}
                    assert (
                        len(around) == 3 or padded[y, x] == padded[y + 1, x + 1] or padded[y, x + 1] == padded[y + 1, x]
                    )
            starts.append(corners[0][::-1])
        assert starts == sorted(starts)
        assert first == starts[0][0] * labels.shape[1] + starts[0][1]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_lattice_of_blocks_gives_the_same(data):
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, NODATA])))
    cuts = (pieces_of(data, shape[0]), pieces_of(data, shape[1]))
    connectivity = data.draw(st.sampled_from([4, 8]))
    confidence = confidence_of(labels)
    parts = polygons(labels, confidence, cuts=cuts, connectivity=connectivity)
    assert parts == polygons(labels, confidence, connectivity=connectivity)


@pytest.mark.parametrize("size", [3, 100])
def test_skipped_classes_give_no_polygons(size):
    labels = RASTERS["blobs_with_nodata"]
    kept = run(labels, size=size, skip=[1])
    others = run(np.where(labels == 1, NODATA, labels).astype(np.uint8))
    assert rows_of(kept) == rows_of(others)
    assert {*kept.class_id.tolist()} == {0, 2}


def test_missing_blocks_count_as_nodata():
    labels = RASTERS["noise"]
    holed = labels.copy()
    holed[9:18, 9:27] = NODATA

    class Holed(LabelArray):
        def read(self, window):
            return None if window.row == 9 and window.col in (9, 18) else super().read(window)

    found = PixelPolygons.joined(polygonize(Holed(labels, size=9)))
    assert rows_of(found.taken(np.argsort(found.first_pixel))) == polygons(holed)


def test_pieces_joined_only_through_a_neighbour_are_one():
    """A U on its side: in the left blocks there are two arms, and only the right one joins them."""
    labels = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]], np.uint8)
    found = run(labels, size=2)
    assert list(zip(found.class_id.tolist(), found.pixels.tolist(), strict=True)) == [(1, 9), (0, 3)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_shell_that_touches_itself_in_a_point_has_a_hole_there(size):
    labels = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
    found = run(labels, size=size)
    (polygon,) = found.geometry[found.class_id == 1]
    assert polygon.is_valid
    assert [list(hole.coords) for hole in polygon.interiors] == [[(1, 1), (2, 1), (2, 2), (1, 2), (1, 1)]]
    assert list(polygon.exterior.coords) == [(1, 0), (1, 1), (0, 1), (0, 3), (3, 3), (3, 0), (1, 0)]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_pixels_that_touch_in_a_corner_are_one_feature_of_eight_and_two_of_four(size):
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], np.uint8)
    four, eight = run(labels, size=size), run(labels, size=size, connectivity=8)
    assert four.feature.tolist() == four.first_pixel.tolist() == [0, 1, 2, 3, 4]
    assert sorted(zip(eight.feature.tolist(), eight.first_pixel.tolist(), strict=True)) == [
        (0, 0),
        (0, 2),
        (0, 4),
        (1, 1),
        (1, 3),
    ]


def test_the_confidence_is_that_of_the_pixels_that_have_one():
    labels = np.array([[0, 0, 1]], np.uint8)
    assert run(labels).confidence_pixels.tolist() == [0, 0]
    found = run(labels, np.array([[500, 65535, 65535]], np.uint16), size=1)
    assert (found.confidence_sum.tolist(), found.confidence_pixels.tolist()) == ([500, 0], [1, 0])


def test_finished_polygons_leave_early(monkeypatch):
    """Over stripes of separate squares, no more is open than what crosses the last row of blocks."""
    labels = np.zeros((64, 64), np.uint8)
    labels[2::8, 2::8] = labels[3::8, 2::8] = 1
    stitchers = []
    start = Stitcher.__init__
    monkeypatch.setattr(Stitcher, "__init__", lambda self, spread: (stitchers.append(self), start(self, spread))[1])
    given, waiting = 0, []
    for batch in polygonize(LabelArray(labels, size=3), skip=[0]):
        given += len(batch)
        waiting.append(len(stitchers[0]))
    assert given == 64
    assert max(waiting) <= 22
    assert len(stitchers[0]) == 0


def test_a_block_of_another_shape_is_refused():
    class Wrong(LabelArray):
        def read(self, window):
            return LabelBlock(Window(0, 0, 3, 3), np.zeros((3, 2), np.uint8))

    with pytest.raises(LabelsError, match=r"block at .* shape \(3, 2\)"):
        list(polygonize(Wrong(np.zeros((3, 3), np.uint8))))


def test_another_connectivity_is_refused():
    with pytest.raises(ValueError, match="4 or 8"):
        list(polygonize(LabelArray(np.zeros((3, 3), np.uint8)), connectivity=6))


def test_an_array_without_pixels_has_no_polygons():
    assert list(polygonize(LabelArray(np.zeros((0, 5), np.uint8)))) == []
