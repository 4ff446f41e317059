"""The spool: order, batches, and nothing left behind."""

import numpy as np
import pytest
import shapely

from geoseg.errors import OutputError
from geoseg.vector.polygons import PixelPolygons
from geoseg.vector.spool import PolygonSpool


def squares(keys):
    keys = np.array(keys, np.int64)
    return PixelPolygons(shapely.box(keys, 0, keys + 1, 1), keys, keys % 3, keys * 0 + 1, keys * 10)


def test_order_and_batches(tmp_path):
    keys = np.random.default_rng(0).permutation(23)
    with PolygonSpool(tmp_path) as spool:
        for part in np.array_split(keys, 5):
            spool.add(squares(part))
        batches = list(spool.ordered(10))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert np.concatenate([batch.first_pixel for batch in batches]).tolist() == list(range(23))
    assert np.concatenate([batch.confidence_sum for batch in batches]).tolist() == list(range(0, 230, 10))
    assert shapely.equals_exact(batches[1].geometry, squares(range(10, 20)).geometry).all()


def test_large_geometries_make_small_batches(tmp_path):
    with PolygonSpool(tmp_path) as spool:
        spool.add(squares(range(6)))
        assert [len(batch) for batch in spool.ordered(100, geometry_bytes=150)] == [2, 2, 2]


def test_an_empty_spool_gives_nothing(tmp_path):
    with PolygonSpool(tmp_path) as spool:
        assert list(spool.ordered()) == []


def test_nothing_is_left_behind(tmp_path):
    folder = tmp_path / "new"
    with PolygonSpool(folder) as spool:
        spool.add(squares(range(3)))
        assert any(folder.iterdir())
    assert not any(folder.iterdir())
    with pytest.raises(KeyError), PolygonSpool(folder):
        raise KeyError
    assert not any(folder.iterdir())


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    with PolygonSpool(tmp_path) as spool:
        spool._base.execute("PRAGMA max_page_count=8")
        with pytest.raises(OutputError, match=r"is full.*free some disk space"):
            spool.add(squares(range(10_000)))
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--workdir"), PolygonSpool(tmp_path / "file" / "folder"):
        pass
