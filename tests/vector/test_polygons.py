"""Polygons from blocks of labels: right as point sets, and the same for any blocks."""

import random

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geoseg.errors import LabelsError
from geoseg.grid import ChunkGrid, Window
from geoseg.vector.polygons import LabelBlock, polygonize
from geoseg.vector.seams import Stitcher

NODATA = 255


def cut(labels, confidence, windows):
    whole = Window(0, 0, *labels.shape)
    for window in windows:
        place = window.within(whole)
        yield LabelBlock(window, labels[place], None if confidence is None else confidence[place])


def rows_of(batches):
    """Everything there is to know of each polygon, by first pixel."""
    rows = []
    for batch in batches:
        columns = (batch.first_pixel, batch.class_id, batch.pixels, batch.confidence_sum)
        rows += zip(*(column.tolist() for column in columns), shapely.to_wkb(batch.geometry), strict=True)
    return sorted(rows)


def polygons(labels, confidence=None, *, size=10_000, seed=None, skip=()):
    windows = list(ChunkGrid(labels.shape, size))
    if seed is not None:
        random.Random(seed).shuffle(windows)
    return rows_of(polygonize(cut(labels, confidence, windows), labels.shape, nodata=NODATA, skip=skip))


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
    "wide_values": np.random.default_rng(6).choice([0, 300, 65535], (20, 20)).astype(np.uint16),
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


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_blocks_make_no_difference(labels, size):
    labels = labels[: 16 * size, : 18 * size]
    confidence = confidence_of(labels)
    whole = polygons(labels, confidence)
    assert polygons(labels, confidence, size=size) == whole
    assert polygons(labels, confidence, size=size, seed=size) == whole


@pytest.mark.parametrize("size", [5, 10_000])
def test_same_point_sets_as_gdal_on_the_whole_array(labels, size):
    rows = polygons(labels, size=size, seed=1)
    pairs = rasterio.features.shapes(labels, mask=labels != NODATA, connectivity=4)
    expected = {shapely.normalize(shapely.geometry.shape(shape)): value for shape, value in pairs}
    assert len(rows) == len(expected)
    mine = [shapely.from_wkb(row[4]) for row in rows]
    if mine:
        tree = shapely.STRtree(mine)
    for other, value in expected.items():
        best = min(tree.query(other), key=lambda i: mine[i].symmetric_difference(other).area)
        assert mine[best].symmetric_difference(other).area == 0
        assert rows[best][1] == value


def test_polygons_are_valid_and_count_their_pixels(labels):
    confidence = confidence_of(labels)
    found = regions(labels, {NODATA})
    rows = polygons(labels, confidence, size=6, seed=3)
    assert [(first, value) for first, value, *_ in rows] == [(first, value) for first, value, _ in found]
    for (_, _, pixels, total, wkb), (_, _, members) in zip(rows, found, strict=True):
        polygon = shapely.from_wkb(wkb)
        assert polygon.geom_type == "Polygon"
        assert polygon.is_valid
        assert pixels == len(members) == polygon.area
        assert total == sum(int(confidence[member]) for member in members)


def test_drawn_again_they_give_the_labels_back(labels):
    rows = polygons(labels, size=4, seed=2)
    drawn = np.full(labels.shape, NODATA, labels.dtype)
    if rows:
        shapes = [(shapely.from_wkb(row[4]), row[1]) for row in rows]
        drawn = rasterio.features.rasterize(shapes, labels.shape, fill=NODATA, dtype=labels.dtype)
    assert (drawn == labels).all()


def test_vertices_are_turns_and_rings_start_and_run_as_promised(labels):
    for row in polygons(labels, size=5, seed=4):
        polygon = shapely.from_wkb(row[4])
        starts = []
        for number, ring in enumerate([polygon.exterior, *polygon.interiors]):
            corners = [(int(x), int(y)) for x, y in ring.coords[:-1]]
            assert len(set(corners)) == len(corners)
            assert corners[0] == min(corners, key=lambda corner: corner[::-1])
            moves = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
            upright = [move[0] == 0 for move in moves]
            assert upright == [(number == 0) == (i % 2 == 0) for i in range(len(moves))]
            assert moves[0] > (0, 0)
            starts.append(corners[0][::-1])
        assert starts == sorted(starts)
        assert row[0] == starts[0][0] * labels.shape[1] + starts[0][1]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_partition_into_rectangles_gives_the_same(data):
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, NODATA])))
    windows = [Window(0, 0, *shape)]
    for _ in range(data.draw(st.integers(0, 8))):
        window = windows.pop(data.draw(st.integers(0, len(windows) - 1)))
        if data.draw(st.booleans()) and window.height > 1:
            at = data.draw(st.integers(1, window.height - 1))
            windows.append(Window(window.row, window.col, at, window.width))
            windows.append(Window(window.row + at, window.col, window.height - at, window.width))
        elif window.width > 1:
            at = data.draw(st.integers(1, window.width - 1))
            windows.append(Window(window.row, window.col, window.height, at))
            windows.append(Window(window.row, window.col + at, window.height, window.width - at))
        else:
            windows.append(window)
    windows = data.draw(st.permutations(windows))
    confidence = confidence_of(labels)
    parts = rows_of(polygonize(cut(labels, confidence, windows), shape, nodata=NODATA))
    assert parts == polygons(labels, confidence)


@pytest.mark.parametrize("size", [3, 100])
def test_skipped_classes_give_no_polygons(size):
    labels = RASTERS["blobs_with_nodata"]
    kept = polygons(labels, size=size, skip=[1])
    assert kept == [row for row in polygons(labels) if row[1] != 1]
    assert {row[1] for row in kept} == {0, 2}


def test_missing_blocks_count_as_nodata():
    labels = RASTERS["noise"]
    windows = list(ChunkGrid(labels.shape, 9))
    missing = windows[4::5]
    holed = labels.copy()
    for window in missing:
        holed[window.within(Window(0, 0, *labels.shape))] = NODATA
    there = [window for window in windows if window not in missing]
    assert rows_of(polygonize(cut(labels, None, there), labels.shape, nodata=NODATA)) == polygons(holed)


def test_pieces_joined_only_through_a_neighbour_are_one():
    """A U on its side: in the left blocks there are two arms, and only the right one joins them."""
    labels = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]], np.uint8)
    rows = polygons(labels, size=2, seed=0)
    assert [(row[1], row[2]) for row in rows] == [(1, 9), (0, 3)]


def test_a_shell_that_touches_itself_in_a_point_has_a_hole_there():
    labels = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
    (ring,) = (row for row in polygons(labels, size=1) if row[1] == 1)
    polygon = shapely.from_wkb(ring[4])
    assert polygon.is_valid
    assert [list(hole.coords) for hole in polygon.interiors] == [[(1, 1), (2, 1), (2, 2), (1, 2), (1, 1)]]
    assert list(polygon.exterior.coords) == [(1, 0), (1, 1), (0, 1), (0, 3), (3, 3), (3, 0), (1, 0)]


def test_no_confidence_is_minus_one():
    labels = np.array([[0, 0, 1]], np.uint8)
    assert [row[3] for row in polygons(labels)] == [-1, -1]
    confidence = np.array([[500, 700, 900]], np.uint16)
    blocks = [
        LabelBlock(Window(0, 0, 1, 1), labels[:, :1], confidence[:, :1]),
        LabelBlock(Window(0, 1, 1, 2), labels[:, 1:]),
    ]
    assert [row[3] for row in rows_of(polygonize(blocks, (1, 3), nodata=NODATA))] == [-1, -1]


def test_finished_polygons_leave_early(monkeypatch):
    """Over stripes of separate squares, no more is open than what crosses the last row of blocks."""
    labels = np.zeros((64, 64), np.uint8)
    labels[2::8, 2::8] = labels[3::8, 2::8] = 1
    stitchers = []
    start = Stitcher.__init__
    monkeypatch.setattr(Stitcher, "__init__", lambda self: (stitchers.append(self), start(self))[1])
    open_counts, given = [], 0
    windows = list(ChunkGrid(labels.shape, 3))
    for batch in polygonize(cut(labels, None, windows), labels.shape, nodata=NODATA, skip=[0]):
        given += len(batch)
        open_counts.append(len(stitchers[0]))
    assert given == 64
    assert max(open_counts) <= 8
    assert open_counts[-1] == 0
    assert not stitchers[0]._parent
    assert not stitchers[0]._regions
    assert not stitchers[0]._fronts


def test_a_column_of_done_blocks_keeps_nothing():
    labels = blobs((40, 40), 3, 8)
    labels[:, 20] = NODATA
    stitched = polygonize(cut(labels, None, ChunkGrid((40, 40), 20)), (40, 40), nodata=NODATA)
    assert sum(len(batch) for batch in stitched) == len(regions(labels, {NODATA}))


@pytest.mark.parametrize(
    ("window", "shape"),
    [(Window(0, 0, 3, 3), (3, 2)), (Window(9, 9, 3, 3), (3, 3)), (Window(-1, 0, 3, 3), (3, 3))],
)
def test_a_block_that_does_not_fit_is_refused(window, shape):
    with pytest.raises(LabelsError, match="block at"):
        list(polygonize([LabelBlock(window, np.zeros(shape, np.uint8))], (10, 10), nodata=NODATA))
