"""The spool: order, batches, and nothing left behind."""

import numpy as np
import pytest
import shapely

from geoseg.errors import OutputError
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.spool import PolygonSpool

WIDTH = 1000


def squares(keys, features=None):
    keys = np.array(keys, np.int64)
    x, y = keys % WIDTH, keys // WIDTH
    corners = np.stack([np.stack([x + dx, y + dy], 1) for dx, dy in ((0, 0), (0, 1), (1, 1), (1, 0), (0, 0))], 1)
    starts = np.arange(len(keys) + 1)
    return PixelPolygons(
        corners.reshape(-1, 2).astype(np.int32),
        5 * starts,
        starts,
        keys,
        keys if features is None else np.array(features, np.int64),
        keys % 3,
        keys * 0 + 1,
        keys * 10,
        keys * 0 + 1,
    )


@pytest.mark.parametrize("memory", [0, 2**30])
def test_order_and_batches(tmp_path, memory):
    # Far apart, so that they lie in several bands of the raster.
    keys = np.random.default_rng(0).permutation(23) * 1_000_000
    with PolygonSpool(tmp_path, WIDTH, memory) as spool:
        for part in np.array_split(keys, 5):
            spool.add(squares(part))
        assert any(tmp_path.iterdir()) == (memory == 0)
        found = PixelPolygons.joined(spool.ordered(10))
    assert found.first_pixel.tolist() == sorted(keys.tolist())
    assert found.confidence_sum.tolist() == [10 * key for key in sorted(keys.tolist())]
    assert shapely.equals_exact(found.geometry, squares(sorted(keys.tolist())).geometry).all()
    assert not any(tmp_path.iterdir())


def test_batches_are_no_larger_than_asked(tmp_path):
    with PolygonSpool(tmp_path, WIDTH) as spool:
        spool.add(squares(range(23)))
        assert [len(batch) for batch in spool.ordered(10)] == [10, 10, 3]
    with PolygonSpool(tmp_path, WIDTH) as spool:
        spool.add(squares(range(6)))
        assert [len(batch) for batch in spool.ordered(100, geometry_bytes=80)] == [2, 2, 2]
    with PolygonSpool(tmp_path, WIDTH) as spool:
        spool.add(squares(range(3)))
        assert [len(batch) for batch in spool.ordered(100, geometry_bytes=1)] == [1, 1, 1]


@pytest.mark.parametrize("memory", [0, 2**30])
def test_parts_of_a_feature_stay_together(tmp_path, memory):
    with PolygonSpool(tmp_path, WIDTH, memory) as spool:
        spool.add(squares([3, 1], [1, 1]))
        spool.add(squares([0, 9_000_000, 2], [0, 1, 2]))
        batches = list(spool.ordered(2))
    assert [batch.first_pixel.tolist() for batch in batches] == [[0], [1, 3, 9_000_000], [2]]


def test_an_empty_spool_gives_nothing(tmp_path):
    with PolygonSpool(tmp_path, WIDTH) as spool:
        assert list(spool.ordered()) == []


def stop_after(spool):
    spool.add(squares(range(3)))
    raise ValueError("stop")


def test_nothing_is_left_behind(tmp_path):
    folder = tmp_path / "new"
    with PolygonSpool(folder, WIDTH, 0) as spool:
        spool.add(squares(range(3)))
        assert any(folder.iterdir())
    assert not any(folder.iterdir())
    with pytest.raises(ValueError, match="stop"), PolygonSpool(folder, WIDTH, 0) as spool:
        stop_after(spool)
    assert not any(folder.iterdir())


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    with PolygonSpool(tmp_path, WIDTH, 0) as spool:
        monkeypatch.setattr(np, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match=r"No space left.*free some disk space"):
            spool.add(squares(range(10)))
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with PolygonSpool(tmp_path / "file" / "folder", WIDTH, 0) as spool, pytest.raises(OutputError, match="--workdir"):
        spool.add(squares([1]))
