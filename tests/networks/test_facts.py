"""The stored facts equal the measured ones."""

import dataclasses
import json
import subprocess
import sys
from importlib import resources

import pytest

from geoseg import networks
from geoseg.networks import facts as module
from geoseg.networks.facts import BANDS, CLASSES, SIDE, Facts, Tiling, as_json, facts


def test_reading_imports_no_torch():
    code = (
        "import sys; from geoseg.networks.facts import facts; facts('unet').macs;"
        "print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_network_has_been_measured():
    stored = json.loads(resources.files("geoseg.networks").joinpath("facts.json").read_text(encoding="utf-8"))
    assert list(stored) == list(networks.names())


@pytest.mark.parametrize("name", networks.names())
def test_stored_sizes_are_the_measured_ones(name):
    from geoseg.networks.measuring import measure_size

    found = facts(name)
    size = measure_size(name, in_channels=BANDS, num_classes=CLASSES, side=SIDE)
    assert (found.parameters, found.macs, found.stride) == (size.parameters, size.macs, size.stride)
    assert found.stride == networks.info(name).stride


@pytest.mark.parametrize("name", networks.names())
def test_tiling_fits_what_the_registry_says(name):
    tiling = facts(name).tiling
    if tiling is None:
        pytest.skip("not measured yet")
    info = networks.info(name)
    assert tiling.halo % info.stride == 0
    assert 0 <= tiling.disagreement < 1
    assert (tiling.exact_halo is not None) == info.tile_exact
    if tiling.exact_halo is not None and tiling.halo >= tiling.exact_halo:
        assert tiling.disagreement < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plainconv", "linknet"])
def test_the_stored_halo_is_the_measured_one(name):
    import torch

    from geoseg.networks.tiling import choose_halo

    torch.manual_seed(0)
    network = networks.create(name, in_channels=BANDS, num_classes=CLASSES).eval()
    found = choose_halo(network, BANDS, network.stride)
    assert (facts(name).tiling.halo, facts(name).tiling.exact_halo) == (found.halo, found.limit)


def test_unet_is_the_unit_of_time():
    assert facts("unet").cpu_ratio == pytest.approx(1, abs=0.15)


def test_a_network_not_measured_has_no_facts():
    assert facts("no such network") is None


def test_what_is_written_is_read_back(tmp_path, monkeypatch):
    measured = {
        "one": Facts(10, 20, 8, 0.5, 30.25),
        "two": Facts(11, 21, 16, 1.5, 31.0, Tiling(64, None, 0.125)),
        "three": Facts(12, 22, 1, 2.5, 32.0, Tiling(3, 3, 0.0)),
    }
    (tmp_path / "facts.json").write_text(as_json(measured), encoding="utf-8")
    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    assert {name: module._stored.__wrapped__()[name] for name in measured} == measured
    assert {field.name for field in dataclasses.fields(Facts)} == set(json.loads(as_json(measured))["one"])
