"""GLNet behind the tile interface, its bundle, and the authors' files."""

import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch

from geoseg.bundle import NormalisationRecord, read_bundle, write_bundle
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError
from geoseg.grid import Window
from geoseg.networks.glnet import MODES, build_glnet
from geoseg.normalisation import Normalisation
from geoseg.scene import open_scene
from geoseg.segmenters.ensemble import Ensemble, TestTimeAugmentation
from geoseg.segmenters.global_local import DISAGREEMENT, GlobalLocal, new_global_local
from geoseg.segmenters.global_local_checkpoints import import_global_local
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.global_local_window import WindowLook, enlarged
from geoseg.segmenters.interface import State, Tiles
from geoseg.segmenters.loading import load
from geoseg.segmenters.macro_windows import MacroGrid
from geoseg.segmenters.scaling import Scaling
from tests.conftest import asymmetric

CLASSES = Classes.parse("background,road,roof")
BANDS = ("red", "green", "blue")
ENCODER = "mobilenetv3_small_100"
SETTINGS = GlobalLocalSettings(overview=64, patch=64, min_overlap=8, extent=128, sub_batch=9)
UNIT = Normalisation((0.0,) * 3, (255.0,) * 3)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def networks():
    """One of each mode, whose scores are large enough to differ."""
    made = {}
    for mode in MODES:
        torch.manual_seed(3)
        made[mode] = build_glnet(in_channels=3, num_classes=3, mode=mode, encoder=ENCODER).eval()
        for name, value in made[mode].named_parameters():
            if value.ndim == 4 and ("fpn" in name or "ensemble" in name):
                torch.nn.init.kaiming_normal_(value)
    return made


def segmenter(network, settings=SETTINGS, classes=CLASSES, normalisation=UNIT):
    return GlobalLocal(network, bands=BANDS, classes=classes, settings=settings, normalisation=normalisation)


def tiles_of(scene, *windows):
    return Tiles.of([scene.read(window) for window in windows])


@pytest.mark.parametrize("mode", MODES)
def test_a_tile_is_a_macro_window(mode, networks, raster):
    scene = open_scene(raster(asymmetric(3, 100, 110)))
    made = segmenter(networks[mode])
    tiles = tiles_of(scene, scene.window)
    found = made.segment(tiles, made.prepare(scene))
    with torch.inference_mode():
        look = WindowLook(networks[mode], tiles.pixels[0], tiles.valid[0], UNIT, SETTINGS)
        expected = look.scores()
    assert torch.equal(found[0], expected.scores / expected.count)
    scores, layers = made.segment_with_layers(tiles, State())
    assert torch.equal(scores, found)
    if mode == "global":
        assert made.spec.layers == ()
        assert layers.shape == (1, 0, 100, 110)
    else:
        assert made.spec.layers == (DISAGREEMENT,)
        chances = [each.softmax(1) for each in (found, enlarged(look.overview_scores, (100, 110), "nearest"))]
        torch.testing.assert_close(layers, (chances[0] - chances[1]).abs().sum(1, keepdim=True) / 2)
        assert 0 < float(layers.max()) <= 1


@pytest.mark.parametrize("mode", MODES)
def test_batches_and_placing_do_not_matter(mode, networks, raster):
    scene = open_scene(raster(asymmetric(3, 150, 200)))
    made, placed = segmenter(networks[mode]), segmenter(networks[mode])
    placed.place(torch.device("cpu"))
    assert placed.network is not networks[mode]
    tiles = tiles_of(scene, Window(0, 0, 100, 100), Window(40, 90, 100, 100))
    both = made.segment(tiles, State())
    for i, one in enumerate(tiles.singles()):
        assert torch.equal(made.segment(one, State())[0], both[i])
    torch.testing.assert_close(placed.segment(tiles, State()), both, rtol=1e-3, atol=1e-4 * float(both.abs().max()))


def test_macro_windows_overlap_by_a_patch(networks):
    made = segmenter(networks["local"])
    assert made.lattice((1000, 300)) == MacroGrid((1000, 300), 128, 64)
    assert (made.spec.tile, made.spec.halo) == (128, 32)
    assert made.spec.fixed_tile
    assert made.spec.view is None


def test_scaling_is_measured_where_there_is_none(networks, raster):
    scene = open_scene(raster(asymmetric(3, 100, 110)))
    made = segmenter(networks["local"], normalisation=None)
    state = made.prepare(scene)
    assert state.normalisation == Normalisation.of(scene.statistics(), "standard")
    tiles = tiles_of(scene, scene.window)
    other = segmenter(networks["local"], normalisation=state.normalisation)
    assert torch.equal(made.segment(tiles, state), other.segment(tiles, State()))
    with pytest.raises(ConfigError, match="no scaling of its bands"):
        made.segment(tiles, State())


def test_pixels_without_data_are_filled(networks, raster):
    array = asymmetric(3, 100, 110)
    array[:, 20:40, 30:50] = 0
    scene = open_scene(raster(array, nodata=0))
    made = segmenter(networks["collaborative"])
    tiles = tiles_of(scene, scene.window)
    assert not tiles.valid.all()
    assert made.segment(tiles, State()).isfinite().all()


def test_coarse_to_fine_spares_patches(networks, raster):
    scene = open_scene(raster(asymmetric(3, 100, 110)))
    tiles = tiles_of(scene, scene.window)
    settings = GlobalLocalSettings(
        overview=64, patch=64, min_overlap=8, extent=128, sub_batch=9, coarse_to_fine=0.999999
    )
    made = segmenter(networks["local"], settings)
    seen = []
    network = networks["local"]
    network.resnet_local.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    segmenter(network).segment(tiles, State())
    every, seen[:] = sum(seen), []
    found = made.segment(tiles, State())
    with torch.inference_mode():
        look = WindowLook(network, tiles.pixels[0], tiles.valid[0], UNIT, settings)
        wanted = look.foreground(0, 0.999999)
    assert sum(seen) == len(wanted) < every
    overview = enlarged(look.overview_scores, scene.shape, "nearest")
    assert torch.equal(found, overview) == (not wanted)
    plain = Classes.parse("field,road,roof")
    with pytest.raises(ConfigError, match="0 of the classes are marked as background"):
        segmenter(network, settings, plain)


def test_turned_tiles_are_turned_with_their_overview(networks, raster):
    scene = open_scene(raster(asymmetric(3, 100, 100)))
    tiles = tiles_of(scene, scene.window)
    made = segmenter(networks["local"])
    turned = TestTimeAugmentation(made, "flips").segment(tiles, State()).softmax(1)
    expected = torch.zeros_like(turned)
    for axes in ((), (-1,), (-2,), (-2, -1)):
        version = Tiles(tiles.pixels.flip(axes), tiles.valid.flip(axes), tiles.windows)
        expected += made.segment(version, State()).softmax(1).flip(axes) / 4
    torch.testing.assert_close(turned, expected)
    both = Ensemble([made, segmenter(networks["global"])])
    assert both.spec.fixed_tile
    assert both.spec.tile == 128


def test_other_bands_or_classes_than_the_networks(networks):
    with pytest.raises(ConfigError, match="takes 3 bands and tells 3 classes apart: give so many, not 2 and 3"):
        GlobalLocal(networks["local"], bands=("a", "b"), classes=CLASSES)


@pytest.mark.parametrize("mode", MODES)
def test_a_bundle_gives_the_segmenter_back(mode, tmp_path, raster):
    scene = open_scene(raster(asymmetric(3, 100, 110)))
    description, tensors = new_global_local(
        bands=BANDS,
        classes=CLASSES,
        mode=mode,
        encoder=ENCODER,
        settings=SETTINGS,
        resolution=0.5,
        normalisation=NormalisationRecord(offset=[0] * 3, scale=[255] * 3),
        seed=4,
    )
    write_bundle(tmp_path / "model.safetensors", description, tensors)
    made = load(tmp_path / "model.safetensors")
    assert isinstance(made, GlobalLocal)
    assert made.settings == SETTINGS
    assert made.spec.resolution == 0.5
    assert made.spec.classes == CLASSES
    torch.manual_seed(4)
    network = build_glnet(in_channels=3, num_classes=3, mode=mode, encoder=ENCODER).eval()
    tiles = tiles_of(scene, scene.window)
    assert torch.equal(made.segment(tiles, State()), segmenter(network).segment(tiles, State()))


def test_damaged_bundles_are_refused(tmp_path):
    description, tensors = new_global_local(
        bands=BANDS, classes=CLASSES, mode="global", encoder=ENCODER, settings=SETTINGS
    )
    path = tmp_path / "model.safetensors"

    def refused(changes, tensors=tensors):
        changed = description.model_copy(update={"settings": {**description.settings, **changes}})
        write_bundle(path, changed, tensors, overwrite=True)
        with pytest.raises(BundleError) as told:
            GlobalLocal.from_bundle(read_bundle(path))
        return str(told.value)

    assert "no mode of GLNet named 'sideways'" in refused({"mode": "sideways"})
    assert "extent" in refused({"extent": 10})
    assert "belong to another network" in refused({"mode": "local"})
    name = "fpn_global.classify.bias"
    assert f"lacks {name}" in refused({}, {key: value for key, value in tensors.items() if key != name})
    del description.settings["encoder"]
    assert "'encoder'" in refused({})


class TestAuthorsFiles:
    """Files as they are: all parts of all stages, behind the prefix of training on several devices."""

    @pytest.fixture(scope="class")
    def files(self, tmp_path_factory):
        """Every tensor is one number everywhere, another in each file; so files are small."""
        folder = tmp_path_factory.mktemp("files")
        with torch.device("meta"):
            made = [build_glnet(in_channels=3, num_classes=3, mode=mode, encoder=ENCODER) for mode in MODES[1:]]
        shapes = {name: value.shape for network in made for name, value in network.state_dict().items()}
        paths = {}
        for mode in MODES:
            tensors = OrderedDict()
            for name, shape in shapes.items():
                if not name.startswith("fixed."):
                    number = zlib.crc32(f"{mode} {name}".encode()) % 1000 / 1000
                    tensors[f"module.{name}"] = torch.tensor(number).expand(shape)
            paths[mode] = folder / f"{mode}.pth"
            torch.save(tensors, paths[mode])
        return paths

    def imported(self, files, mode, **options):
        options.setdefault("first", files["global"] if mode == "collaborative" else None)
        return import_global_local(
            files[mode], mode, bands=BANDS, classes=options.pop("classes", CLASSES), encoder=ENCODER, **options
        )

    @pytest.mark.parametrize("mode", MODES)
    def test_weights_of_their_stage(self, mode, files, tmp_path):
        description, tensors = self.imported(files, mode, settings=SETTINGS, licence="MIT")
        source = torch.load(files[mode], weights_only=True)
        before = torch.load(files["global"], weights_only=True)
        for name, value in tensors.items():
            theirs = before if name.startswith("fixed.") else source
            assert np.array_equal(value, theirs[f"module.{name.removeprefix('fixed.')}"].numpy()), name
        assert any(name.startswith("fixed.") for name in tensors) == (mode == "collaborative")
        assert description.normalisation == NormalisationRecord(offset=[0] * 3, scale=[255] * 3)
        assert description.licence == "MIT"
        write_bundle(tmp_path / "model.safetensors", description, tensors)
        assert load(tmp_path / "model.safetensors").network.mode == mode

    def test_another_scaling(self, files):
        description, _ = self.imported(files, "global", scaling=Scaling("scene"))
        assert description.normalisation is None

    def test_the_first_stage_belongs_to_the_third_alone(self, files):
        with pytest.raises(ConfigError, match="mode collaborative of GLNet takes the file of the first stage too"):
            self.imported(files, "collaborative", first=None)
        with pytest.raises(ConfigError, match="mode local of GLNet takes one file"):
            self.imported(files, "local", first=files["global"])

    def test_other_weights_are_refused(self, files, tmp_path):
        with pytest.raises(BundleError, match=r"fpn_global.classify.weight \(3, 512, 3, 3\) for \(2, 512, 3, 3\)"):
            self.imported(files, "global", classes=Classes.parse("field,road"))
        tensors = torch.load(files["local"], weights_only=True)
        tensors["module.extra.weight"] = torch.ones(2)
        torch.save(tensors, tmp_path / "more.pth")
        with pytest.raises(BundleError, match=r"extra\.weight"):
            self.imported({"local": tmp_path / "more.pth"}, "local")
        del tensors["module.extra.weight"], tensors["module.fpn_local.smooth.bias"]
        torch.save(tensors, tmp_path / "less.pth")
        with pytest.raises(BundleError, match=r"lacks 1 of \d+ tensors \(fpn_local.smooth.bias"):
            self.imported({"local": tmp_path / "less.pth"}, "local")
