"""GLNet against the authors' networks in their three modes, their evaluation of a scene, their grids and losses."""

from __future__ import annotations

import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from geoseg.losses.global_local import GlobalLocalLoss
from geoseg.losses.standard import Focal
from geoseg.metrics import Confusion
from geoseg.networks.glnet import MODES, STRIDES, build_glnet
from geoseg.networks.glnet_exchange import Merging, crops
from geoseg.networks.glnet_fpn import resized
from geoseg.networks.patch_grid import patch_grid
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.global_local_window import WindowLook, enlarged, overview_of

from .conftest import reference_folder

pytestmark = pytest.mark.golden
MANIFEST = json.loads((reference_folder() / "glnet" / "manifest.json").read_text())
CONFIG = MANIFEST["config"]
CLASSES = CONFIG["n_class"]
PATCH, OVERVIEW, SCENE = (tuple(CONFIG[name]) for name in ("size_p", "size_g", "scene_hw"))
FIXED = "fixed."


@pytest.fixture(scope="module")
def reference(golden):
    return golden("glnet")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def on_paper(mode):
    """A network without numbers."""
    with torch.device("meta"):
        return build_glnet(in_channels=3, num_classes=CLASSES, mode=mode).eval()


@pytest.fixture(scope="module")
def networks(weights):
    """One network of each mode with the references' weights; parts of the same numbers are the same objects."""
    seed = CONFIG["weights_seed"]

    def filled(module, prefix, seed=seed):
        return weights.fill_weights(module.to_empty(device="cpu"), seed, lambda name: f"{prefix}{name}")

    made = {mode: on_paper(mode) for mode in MODES}
    alone, local, both = made.values()
    filled(alone, "")
    for part in ("resnet_local", "fpn_local", "ensemble_conv"):
        setattr(both, part, filled(getattr(local, part), f"{part}."))
    local.resnet_global = both.resnet_global = alone.resnet_global
    local.fpn_global = alone.fpn_global
    filled(both.fpn_global, "fpn_global.")
    other = next(value for key, value in CONFIG.items() if key.startswith("fixed_global_branch"))
    filled(both.fixed, "", other)
    return made


class Case:
    """Overview, patches and grid of the references."""

    def __init__(self, reference, weights):
        self.overview = weights.golden_input(tuple(reference["input_shape"].tolist()), int(reference["seed"]))
        shape = tuple(reference["patches_shape"].tolist())
        self.patches = weights.golden_input(shape, int(reference["patches_seed"]))
        self.corners = [tuple(corner) for corner in reference["patch_top_left_pixels"].tolist()]
        self.maps = [tuple(entry["shape"][2:]) for name, entry in MANIFEST["arrays"].items() if name[:3] == "A_c"]
        self.grid = patch_grid(SCENE, PATCH, self.maps)

    def batches(self):
        """Patches and their corners, as many at a time as the references had."""
        for start in range(0, len(self.corners), CONFIG["sub_batch_size"]):
            part = slice(start, start + CONFIG["sub_batch_size"])
            yield self.patches[part], self.corners[part]


@pytest.fixture(scope="module")
def case(reference, weights):
    return Case(reference, weights)


def stored(name, maps):
    """What of the maps the references keep."""
    parts = re.findall(r"(\d*):+(\d*)", MANIFEST["arrays"][name].get("stored", ""))
    return maps[tuple(slice(None, None, int(step or 1)) for _, step in parts)]


def error(reference, name, maps):
    """Largest difference to the reference, over its largest value."""
    expected = torch.from_numpy(reference[name])
    found = stored(name, maps)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def test_names_shapes_and_counts():
    networks = {mode: on_paper(mode) for mode in MODES}
    expected = {entry["name"]: tuple(entry["shape"]) for entry in MANIFEST["state_dict"]}
    names = {
        mode: {name: tuple(value.shape) for name, value in net.state_dict().items()} for mode, net in networks.items()
    }
    own = {name: shape for name, shape in names["collaborative"].items() if not name.startswith(FIXED)}
    assert names["local"] | own == expected
    fixed = {
        name.removeprefix(FIXED): shape for name, shape in names["collaborative"].items() if name.startswith(FIXED)
    }
    assert fixed == names["global"]
    assert fixed.items() <= names["local"].items()

    parts = MANIFEST["param_count_by_part"]
    for part in ("resnet_global", "resnet_local", "fpn_local", "ensemble_conv"):
        assert parameters(getattr(networks["local"], part)) == parts[part]
    sizes = {name: value.numel() for mode in MODES for name, value in networks[mode].named_parameters()}
    assert sum(size for name, size in sizes.items() if name.startswith("fpn_global.")) == parts["fpn_global"]
    assert sum(size for name, size in sizes.items() if not name.startswith(FIXED)) == MANIFEST["param_count"]


def parameters(module):
    return sum(value.numel() for value in module.parameters())


def multiplications(run):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2e9


def test_multiplications():
    gmac = MANIFEST["gmac"]
    size = int(re.search(r"one (\d+) x \d+ input", gmac["note"])[1])
    network = on_paper("collaborative")
    pixels = torch.empty(1, 3, size, size, device="meta")
    encoded = network.resnet_global(pixels)
    plain = network.overview(pixels)
    beside = network.fpn_local(encoded, plain.stages)
    assert multiplications(lambda: network.resnet_global(pixels)) == pytest.approx(gmac["resnet50"], rel=1e-5)
    scores = [
        lambda: network.overview_scores(network.overview(pixels)),
        lambda: network.extended_scores(network.extended(pixels, plain.stages)),
        lambda: network.local_scores(network.fpn_local(encoded, plain.stages)),
    ]
    expected = [
        gmac["resnet50"] + gmac["fpn_plain"],
        gmac["resnet50"] + gmac["fpn_ext_or_local"],
        gmac["fpn_ext_or_local"],
    ]
    assert [multiplications(each) for each in scores] == pytest.approx(expected, rel=1e-5)
    grid = patch_grid((size, size), (size, size))

    def both_shares():
        network.local_share(beside)
        network.global_share(plain.joined, grid, grid.corners, beside.joined.shape[-2:])

    assert multiplications(both_shares) == pytest.approx(gmac["ensemble"], rel=1e-4)


def test_global_branch(reference, networks, case):
    network = networks["global"]
    with torch.inference_mode():
        maps = network.overview(case.overview)
        assert error(reference, "A_output_global", network.overview_scores(maps)) <= 1e-4
    assert error(reference, "A_ps3", maps.joined) <= 1e-4
    for level, name in enumerate(("A_c5", "A_c4", "A_c3", "A_c2")):
        found = maps.stages[0][level].double()
        facts = [float(value) for value in (found.mean(), found.std(correction=0), found.abs().max())]
        assert facts == pytest.approx(MANIFEST["arrays"][name]["mean_std_absmax"], rel=1e-4)


def test_places_of_patches(reference, case):
    assert list(case.grid.corners) == case.corners
    sizes = [
        [part.stop - part.start for part in case.grid.cells(case.corners[0], shape)]
        for shape in sorted(case.maps, reverse=True)
    ]
    assert sizes == reference["B_crop_rows_cols"].tolist()


def test_global_to_local(reference, networks, case):
    network = networks["local"]
    pick = reference["B_pick"].tolist()
    corners = [case.corners[i] for i in pick]
    with torch.inference_mode():
        overview = network.overview(case.overview)
        maps = network.local(case.patches[pick], overview, case.grid, corners)
        share = network.local_share(maps)
        scores = share + network.global_share(overview.joined, case.grid, corners, share.shape[-2:])
        assert error(reference, "B_output_local", network.local_scores(maps)) <= 1e-4
    assert error(reference, "B_output_ensemble", scores) <= 1e-4
    under = resized(crops(overview.joined, case.grid, corners), maps.joined.shape[-2:])
    assert float((maps.joined - under).square().mean()) == pytest.approx(reference["B_mse"].item(), rel=1e-4)


def collaborated(network, case):
    """Merged maps, scores of the local branch, maps and scores of the further look, and scores of all patches."""
    with torch.inference_mode():
        overview = network.overview(case.overview)
        merging, shares, local = Merging(overview.stages, case.grid), [], []
        for patches, corners in case.batches():
            maps = network.local(patches, overview, case.grid, corners)
            merging.add(corners, maps.stages)
            shares.append(network.local_share(maps))
            local.append(network.local_scores(maps))
        merged = merging.maps()
        extended = network.extended(case.overview, merged)
        scores = torch.cat(shares)
        scores = scores + network.global_share(extended.joined, case.grid, case.corners, scores.shape[-2:])
        return merged, torch.cat(local), extended, network.extended_scores(extended), scores


def test_both_ways(reference, networks, case):
    merged, local, extended, output, scores = collaborated(networks["collaborative"], case)
    assert error(reference, "C_output_local", local) <= 1e-4
    assert error(reference, "C_merged_c5", merged[0][0]) <= 1e-4
    assert error(reference, "C_merged_ps2_p2", merged[3][3]) <= 1e-4
    assert error(reference, "C_output_global", output) <= 1e-4
    assert error(reference, "C_ps3_global", extended.joined) <= 1e-4
    assert error(reference, "C_output_ensemble", scores) <= 1e-4


def test_one_set_of_weights_for_both_global_branches_is_wrong(reference, networks, case, monkeypatch):
    monkeypatch.setitem(networks["collaborative"]._modules, "fixed", networks["global"])
    merged, *_, scores = collaborated(networks["collaborative"], case)
    assert error(reference, "C_merged_ps2_p2", merged[3][3]) > 1e-2
    assert error(reference, "C_output_ensemble", scores) > 1e-2


@pytest.mark.parametrize("name", MANIFEST["patch_grid_examples"])
def test_grids(name):
    """With and without a look at the maps of an overview of a patch's size, each cell of which needs one."""
    expected = MANIFEST["patch_grid_examples"][name]
    height, width, patch = map(int, re.fullmatch(r"(\d+)x(\d+)/p(\d+)", name).groups())
    maps = [(-(-patch // stride),) * 2 for stride in STRIDES]
    for grid in (patch_grid((height, width), (patch, patch)), patch_grid((height, width), (patch, patch), maps)):
        assert list(grid.tops) == expected["tops"]
        assert len(grid.tops) == expected["n_rows"]
        assert len(grid.lefts) == expected["n_cols"]
        for starts, side, step in ((grid.tops, height, "step_rows"), (grid.lefts, width, "step_cols")):
            assert (side - patch) / (len(starts) - 1) == expected[step]
            assert starts[-1] == side - patch


# The authors divide bytes by 255 and subtract nothing.
SCALING = Normalisation((0.0,) * 3, (255.0,) * 3)


@pytest.fixture(scope="module")
def scene(weights):
    """The scene of the references, (3, H, W) uint8."""
    noise = weights.golden_input((*SCENE, 3), CONFIG["weights_seed"])
    return (128 + 48 * noise).round().clamp(0, 255).to(torch.uint8).movedim(2, 0).contiguous()


@pytest.fixture(scope="module")
def truth(reference, weights):
    """The labels that the references' IoU are against, (H, W)."""
    noise = weights.golden_input(SCENE, int(reference["D_label_seed"]))
    return ((noise + 2) / 4 * CLASSES).floor().clamp(0, CLASSES - 1).long()


def iou(found, truth):
    pairs = torch.bincount((truth * CLASSES + found).flatten(), minlength=CLASSES**2)
    return Confusion(pairs.view(CLASSES, CLASSES).numpy()).iou


def test_overview(reference, scene):
    values, known = overview_of(scene, torch.ones(SCENE, dtype=torch.bool), OVERVIEW)
    assert known.all()
    expected = torch.from_numpy(reference["D_overview_uint8"]).movedim(2, 0).float()
    assert float((values - expected).abs().max()) <= 1


@pytest.mark.parametrize(("mode", "number"), zip(MODES, (1, 2, 3), strict=True))
def test_a_scene(mode, number, reference, networks, scene, truth):
    """With the authors' square sizes; all sums, labels and IoU that the references have of this mode."""
    settings = GlobalLocalSettings(
        overview=OVERVIEW[0], patch=PATCH[0], extent=4 * PATCH[0], sub_batch=CONFIG["sub_batch_size"]
    )
    with torch.inference_mode():
        look = WindowLook(networks[mode], scene, torch.ones(SCENE, dtype=torch.bool), SCALING, settings)
        found = look.scores(local=True)
    name = f"D_mode{number}"
    maps = {"global": enlarged(found.overview, SCENE, "nearest")[0]}
    if mode == "global":
        assert torch.equal(found.mean, maps["global"])
    else:
        maps |= {"": found.scores, "local": found.local}
    compared = 0
    for kind, scores in maps.items():
        ending = f"_{kind}" if kind else ""
        labels = scores.argmax(0)
        if f"{name}_scores{ending}" in reference.arrays:
            assert error(reference, f"{name}_scores{ending}", scores) <= 1e-4
        if f"{name}_pred{ending}" in reference.arrays:
            same = labels == torch.from_numpy(reference[f"{name}_pred{ending}"])
            assert float(same.double().mean()) >= 0.999
        assert iou(labels, truth) == pytest.approx(reference[f"{name}_iou{ending}"], abs=1e-3)
        compared += 1
    assert compared == sum(f"{name}_iou" in array for array in reference.arrays)


@pytest.mark.parametrize("mode", MODES[1:])
def test_neither_order_nor_batches_of_patches_matter(mode, networks, scene):
    valid = torch.ones(SCENE, dtype=torch.bool)
    found = []
    for sub_batch, step in ((CONFIG["sub_batch_size"], 1), (1, -1)):
        settings = GlobalLocalSettings(overview=OVERVIEW[0], patch=PATCH[0], extent=4 * PATCH[0], sub_batch=sub_batch)
        with torch.inference_mode():
            look = WindowLook(networks[mode], scene, valid, SCALING, settings)
            found.append(look.scores(look.grid.corners[::step]).scores)
    assert float((found[0] - found[1]).abs().max() / found[0].abs().max()) <= 1e-5


def labels_of(noise):
    return ((noise + 2) / 4 * CLASSES).floor().clamp(0, CLASSES - 1).long()


@pytest.fixture(scope="module")
def scored(weights):
    """Logits and labels of the references' focal loss."""
    seed = CONFIG["weights_seed"]
    logits = 3 * weights.golden_input((2, CLASSES, 16, 16), seed + 300)
    return logits, labels_of(weights.golden_input((2, 16, 16), seed + 301))


def test_focal_loss(reference, scored):
    logits, labels = scored
    gamma = CONFIG["focal_gamma"]
    plain = Focal(CLASSES, -1, gamma=0)(logits, labels)
    assert plain.item() == pytest.approx(reference["E_focal_gamma0"].item(), rel=1e-5)
    assert plain.item() == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)
    loss = GlobalLocalLoss(CLASSES, gamma=gamma, ignore_index=-1)
    logits = logits.clone().requires_grad_()
    found = loss.scores(logits, labels)
    assert found.item() == pytest.approx(reference[f"E_focal_gamma{gamma}"].item(), rel=1e-5)
    found.backward()
    assert error(reference, f"E_focal_gamma{gamma}_grad", logits.grad) <= 1e-5
    ignored = next(int(name.rsplit("ignore", 1)[1]) for name in reference.arrays if "_ignore" in name)
    found = GlobalLocalLoss(CLASSES, gamma=gamma, ignore_index=ignored).scores(logits, labels)
    assert found.item() == pytest.approx(reference[f"E_focal_gamma{gamma}_ignore{ignored}"].item(), rel=1e-5)


def clamped(scores, labels, least=1e-7):
    """Scores without a gradient where the true class is less probable than that: the authors clamp it there."""
    sure = scores.detach().softmax(1).gather(1, labels[:, None]) >= least
    assert not sure.all()
    return scores.where(sure, scores.detach())


def test_loss_of_the_second_stage(reference, networks, weights, case):
    """With batch norm as in evaluation; nothing of the global branch may have a gradient."""
    network = networks["local"].requires_grad_()
    pick = reference["B_pick"].tolist()
    corners = [case.corners[i] for i in pick]
    cells = [side // 4 for side in PATCH]
    labels = labels_of(weights.golden_input((len(pick), *cells), CONFIG["weights_seed"] + 302))
    with torch.no_grad():
        overview = network.overview(case.overview)
    maps = network.local(case.patches[pick], overview, case.grid, corners)
    share = network.local_share(maps)
    scores = share + network.global_share(overview.joined, case.grid, corners, share.shape[-2:])
    under = resized(crops(overview.joined, case.grid, corners), maps.joined.shape[-2:])
    local, both = (clamped(each, labels) for each in (network.local_scores(maps), scores))
    parts = (local, both, labels, maps.joined, under)
    loss = GlobalLocalLoss(CLASSES, gamma=CONFIG["focal_gamma"], coupling=CONFIG["lambda_fmreg"], ignore_index=-1)
    found = loss(*parts)
    terms = [value.item() for value in (*loss.terms(*parts), found)]
    assert terms == pytest.approx(reference["E_mode2_loss_terms"].tolist(), rel=1e-3)
    found.backward()
    gradients = dict(network.named_parameters())
    norms = MANIFEST["arrays"]["E_mode2_grad_norms"]
    assert {name: gradients[name].grad.norm().item() for name in norms} == pytest.approx(norms, rel=1e-3)
    assert all(value.grad is None for name, value in gradients.items() if "global" in name)
    network.requires_grad_(False).zero_grad()
