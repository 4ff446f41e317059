"""Two processes that train one network: one model, figures of all pixels, the same weights each time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import geoseg
from geoseg.bundle import read_bundle
from geoseg.segmenters.interface import scaled
from geoseg.segmenters.network import PlainNetwork
from geoseg.training.config import check
from geoseg.training.labels import IGNORE
from geoseg.training.module import confusion_of, figures_of
from geoseg.training.patches import Judged, Judging, collate
from geoseg.training.site import open_sites
from tests.training.conftest import same


@pytest.fixture
def judging(settings: Callable[..., dict[str, Any]]) -> Judging:
    return Judging.of(open_sites(check(settings()))[1], 32)


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_processes_share_the_squares_and_all_take_part(judging: Judging, world: int) -> None:
    whole = collate([judging[i] for i in range(len(judging))], range(len(judging)))
    shares = [list(Judged(judging, 3, 0, False, rank, world)) for rank in range(world)]
    assert all(shares)
    known = [batch["labels"][batch["labels"] != IGNORE] for share in shares for batch in share]
    counted = torch.bincount(torch.cat(known).long(), minlength=2)
    assert counted.tolist() == torch.bincount(whole["labels"][whole["labels"] != IGNORE].long(), minlength=2).tolist()


@pytest.mark.slow
def test_two_processes_on_a_cpu(settings: Callable[..., dict[str, Any]], judging: Judging, tmp_path: Path) -> None:
    import yaml

    loop = {"steps": 6, "batch": 2, "devices": 2, "validate_every": 3, "checkpoint_every": 2, "keep": "last"}
    # Batch statistics differ between the processes, so that one of them alone can be what is judged and kept.
    given = settings(network={"name": "unet", "encoder": "resnet18"}, training={**settings()["training"], **loop})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    for name in ("a", "b"):
        model = tmp_path / f"{name}.safetensors"
        command = [sys.executable, "-m", "geoseg_cli", "train", tmp_path / "c.yaml", "-o", model]
        run = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=900)
        assert run.returncode == 0, run.stderr
        # One of the two speaks.
        assert run.stdout == f"{model}\n"
        assert run.stderr.count("counting labels: 1/1") == 1
        assert [line.split(":")[0] for line in run.stderr.splitlines() if line.startswith("step ")] == [
            "step 3",
            "step 6",
        ]
        assert not (tmp_path / f".{name}.safetensors.training").exists()
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")

    description = read_bundle(tmp_path / "a.safetensors").description
    told = description.training["validation"]
    assert description.normalisation is not None
    scaling = description.normalisation.build()
    segmenter = geoseg.load(tmp_path / "a.safetensors")
    assert isinstance(segmenter, PlainNetwork)
    network = segmenter.module.eval()
    found = torch.zeros(2, 2, dtype=torch.int64)
    for i in range(len(judging)):
        batch = collate([judging[i]], [i])
        with torch.no_grad():
            scores = network(scaled(batch["pixels"], batch["valid"], [scaling]))
        found += confusion_of(scores.argmax(1), batch["labels"].long(), 2)
    figures = figures_of(found, segmenter.spec.classes)
    assert figures["pixels"] == told["pixels"] == np.prod([128, 48])
    # The last pass sums in another order.
    assert figures["mean_iou"] == pytest.approx(told["mean_iou"], abs=2e-3)
