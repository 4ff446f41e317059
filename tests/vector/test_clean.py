"""Small regions and holes: what becomes of them, against a plain implementation, for any blocks."""

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from geoseg.errors import OutputError
from geoseg.vector import label_map
from geoseg.vector.clean import PixelAreas, clean
from geoseg.vector.label_map import LabelArray, LabelMap
from geoseg.vector.polygons import NOTHING, UNKNOWN

SQUARE = PixelAreas(np.full((1, 1), 2**20), 1 / 2**20, 1024, 1024)
NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def regions(labels, holes):
    """Return a map of region names (their first pixels) and a dict from name to mask, area and code."""
    names, found = np.full(labels.shape, -1), {}
    for code in np.unique(labels):
        if code == NOTHING and not holes:
            continue
        numbered, count = ndimage.label(labels == code)
        for number in range(1, count + 1):
            mask = numbered == number
            name = int(np.flatnonzero(mask)[0])
            names[mask] = name
            found[name] = (mask, int(mask.sum()), int(code))
    return names, found


def one_round(labels, small, hole):
    names, found = regions(labels, holes=hole > 0)
    around = np.pad(names, 1, constant_values=-1)
    border = {name: {} for name in found}
    for (row, col), name in np.ndenumerate(names):
        for down, right in NEIGHBOURS if name >= 0 else ():
            other = int(around[row + 1 + down, col + 1 + right])
            if other != name:
                border[name][other] = border[name].get(other, 0) + 1

    def is_small(name):
        return found[name][1] < (hole if found[name][2] == NOTHING else small)

    def heirs(name):
        def larger(other):
            return (found[other][1], -other) > (found[name][1], -name)

        others = [other for other in border[name] if other >= 0 and found[other][2] != NOTHING]
        return [other for other in others if found[name][2] == NOTHING or larger(other)]

    moving = {name for name in found if is_small(name) and found[name][2] != NOTHING and heirs(name)}
    changes = {}
    for name in found:
        at_edge = found[name][2] == NOTHING and -1 in border[name]
        if is_small(name) and not at_edge and (candidates := heirs(name)):
            heir = max(candidates, key=lambda other: (border[name][other], found[other][1], -other))
            if heir not in moving:
                changes[name] = found[heir][2]
    for name, code in changes.items():
        labels[found[name][0]] = code
    return bool(changes)


def plain(labels, small, hole, drop):
    labels = labels.copy()
    if drop and small:
        for mask, area, _ in regions(labels, holes=False)[1].values():
            if area < small:
                labels[mask] = NOTHING
        small = 0
    while (small or hole) and one_round(labels, small, hole):
        pass
    return labels


def cleaned(labels, tmp_path, confidence=None, cuts=None, areas=SQUARE, **options):
    with LabelMap(LabelArray(labels, confidence, cuts=cuts), tmp_path) as changed:
        clean(changed, areas, **options)
        return changed.labels.copy()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_as_a_plain_implementation_does_it_for_any_blocks(data, tmp_path_factory):
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, NOTHING])))
    cuts = tuple(
        tuple(sorted({0, length, *data.draw(st.sets(st.integers(0, length - 1), max_size=4))})) for length in shape
    )
    small, hole = data.draw(st.sampled_from([0, 2, 4, 9, 50])), data.draw(st.sampled_from([0, 2, 5]))
    drop = data.draw(st.booleans())
    found = cleaned(labels, tmp_path_factory.getbasetemp(), cuts=cuts, min_area_m2=small, fill_holes_m2=hole, drop=drop)
    assert (found == plain(labels, small, hole, drop)).all()


def test_small_regions_go_to_the_neighbour_with_the_longest_border(tmp_path):
    labels = np.array([[0, 0, 0, 0, 1, 1], [0, 2, 2, 2, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]], np.uint8)
    merged = cleaned(labels, tmp_path, min_area_m2=4)
    assert (merged[1, 1:4] == 0).all()
    dropped = cleaned(labels, tmp_path, min_area_m2=4, drop=True)
    assert (dropped[1, 1:4] == NOTHING).all()
    assert (cleaned(labels, tmp_path, min_area_m2=4, drop=True, fill_holes_m2=4) == merged).all()


def test_holes_are_filled_but_not_at_the_edge(tmp_path):
    labels = np.ones((6, 6), np.uint8)
    labels[2, 2:4] = labels[0, 0] = NOTHING
    found = cleaned(labels, tmp_path, fill_holes_m2=10)
    assert (found[2, 2:4] == 1).all()
    assert found[0, 0] == NOTHING
    assert (cleaned(labels, tmp_path, fill_holes_m2=2) == labels).all()


def test_nothing_small_is_left_that_has_a_neighbour(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (60, 60)).astype(np.uint8)
    found = cleaned(labels, tmp_path, cuts=((0, 17, 60), (0, 31, 60)), min_area_m2=30)
    assert all(area >= 30 for _, area, _ in regions(found, holes=False)[1].values())


def test_areas_are_those_of_the_ellipsoid(tmp_path):
    # Cells of one degree: on the ellipsoid a square degree near 60° is 1 % larger than the cosine says.
    areas = PixelAreas.of((90, 10), Affine(1, 0, 0, 0, -1, 90), pyproj.CRS(4326), (1.0, 1.0))
    assert areas.parts.shape == (1, 1)
    tall = PixelAreas.of((90 * 256, 256), Affine(1 / 256, 0, 0, 0, -1 / 256, 90), pyproj.CRS(4326), (1.0, 1.0))
    ratio = tall.parts[30, 0] / tall.parts[89, 0]
    assert ratio == pytest.approx(np.cos(np.radians(59.5)) * 1.0101, rel=1e-3)
    assert tall.parts[89, 0] * tall.unit_m2 == pytest.approx(12309e6 / 256**2, rel=1e-3)


def test_edges_count_by_their_length_on_the_ground(tmp_path):
    # The small one has two edges with the left and one with the upper neighbour; the upper one is four times as long.
    labels = np.array([[0, 0, 0], [1, 2, 3], [1, 2, 3], [1, 1, 3]], np.uint8)
    tall = PixelAreas(np.full((1, 1), 2**20), 1 / 2**20, 256, 1024)
    wide = PixelAreas(np.full((1, 1), 2**20), 1 / 2**20, 1024, 256)
    assert cleaned(labels, tmp_path, areas=tall, min_area_m2=3)[1, 1] == 1
    assert cleaned(labels, tmp_path, areas=wide, min_area_m2=3)[1, 1] != 3


def test_changed_pixels_lose_their_confidence(tmp_path):
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 1] = 1
    source = LabelArray(labels, np.full((4, 4), 700, np.uint16), size=4)
    with LabelMap(source, tmp_path) as changed:
        clean(changed, SQUARE, min_area_m2=2)
        block = changed.read(changed.windows()[0])
    assert (block.confidence == np.where(labels == 1, UNKNOWN, 700)).all()


def test_large_rasters_lie_in_a_file_that_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(label_map, "_MEMORY_PIXELS", 10)
    labels = np.random.default_rng(1).integers(0, 3, (40, 30)).astype(np.uint8)
    with LabelMap(LabelArray(labels, size=16), tmp_path) as changed:
        assert isinstance(changed.labels, np.memmap)
        assert (changed.labels == labels).all()
        changed.forget([1])
        assert (changed.labels == np.where(labels == 1, NOTHING, labels)).all()
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--workdir"), LabelMap(LabelArray(labels), tmp_path / "file" / "x"):
        pass
