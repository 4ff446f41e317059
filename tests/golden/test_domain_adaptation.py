"""Adversarial adaptation against the authors' U-Net, auxiliary head and discriminator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from geoseg.networks.unet_lext import Discriminator, UNetLext
from geoseg.training.adaptation import SOURCE, TARGET, belief

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def reference(golden):
    return golden("domain_adaptation")


@pytest.fixture(scope="module")
def made(reference, weights):
    """The network without and with the head, and the discriminator, filled."""
    told, seed = reference.config, int(reference["seed"])
    shape = {"width": told["basic_width"], "depth": told["depth"], "center_depth": told["center_depth"]}
    with torch.random.fork_rng(devices=[]):
        networks = [
            UNetLext(told["input_channels"], told["output_channels"], align_corners=True, auxiliary=auxiliary, **shape)
            for auxiliary in (False, True)
        ]
        discriminator = Discriminator(told["output_channels"])
    plain, with_head = networks[0].eval(), weights.fill_weights(networks[1], seed)
    # Weights are drawn by their names, so that both have the same.
    plain.load_state_dict({name: with_head.state_dict()[name] for name in plain.state_dict()})
    return [plain, with_head, weights.fill_weights(discriminator, seed)]


@pytest.fixture(scope="module")
def pictures(reference, weights):
    """A patch of the source, one of the target, and where they hold data."""
    shape, seed = tuple(int(n) for n in reference["input_shape"]), int(reference["seed"])
    seen = torch.ones(shape[0], *shape[2:], dtype=torch.bool)
    return weights.golden_input(shape, seed), weights.golden_input(shape, seed + 1), seen


def near(found, expected, share):
    expected = torch.from_numpy(np.asarray(expected))
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=share * float(expected.std()))


def close(found, expected):
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_names_and_shapes(reference, made):
    for name, module in zip(("unet", "unet_aux", "discriminator"), made, strict=True):
        wanted = {entry["name"]: tuple(entry["shape"]) for entry in reference.manifest["state_dict"][name]}
        assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == wanted


def test_numbers_of_parameters(reference, made):
    for name, module in zip(("unet", "unet_aux", "discriminator"), made, strict=True):
        assert sum(p.numel() for p in module.parameters()) == reference.manifest["parameters"][name]


def test_what_they_give(reference, made, pictures):
    network, with_head, discriminator = made
    with torch.no_grad():
        for name, picture in zip(("source", "target"), pictures[:2], strict=True):
            scores = network(picture)
            near(scores[..., ::4, ::4], reference[f"unet_{name}_s4"], 1e-4)
            near(discriminator(scores.softmax(1)), reference[f"discr_{name}"], 1e-4)
        scores, aux = with_head.both(pictures[0])
        near(scores[..., ::4, ::4], reference["aux_model_out_s4"], 1e-4)
        near(aux[..., ::4, ::4], reference["aux_model_aux_s4"], 1e-4)


def test_losses_and_gradients(reference, made, pictures):
    network, _, discriminator = made
    source, target, seen = pictures
    labels = torch.from_numpy(reference["labels"]).long()
    scores, aims = network(source), network(target).softmax(1)
    supervised = F.cross_entropy(scores, labels)
    adversarial = belief(discriminator, aims, seen, SOURCE)
    close(supervised, reference["loss_seg"])
    close(adversarial, reference["loss_adv"])
    close(supervised + 0.001 * adversarial, reference["loss_total"])
    mixer = list(network.mixer.parameters())
    weight, bias = torch.autograd.grad(supervised + 0.001 * adversarial, mixer, retain_graph=True)
    near(weight, reference["grad_mixer_weight"], 1e-4)
    near(bias, reference["grad_mixer_bias"], 1e-4)
    near(torch.autograd.grad(adversarial, mixer)[0], reference["grad_adv_mixer_weight"], 1e-4)
    halves = [
        0.5 * belief(discriminator, shares.detach(), seen, place)
        for shares, place in ((scores.softmax(1), SOURCE), (aims, TARGET))
    ]
    close(halves[0], reference["loss_d_source"])
    close(halves[1], reference["loss_d_target"])
    (gradient,) = torch.autograd.grad(halves[0] + halves[1], [discriminator.output.weight])
    assert float(gradient.norm()) == pytest.approx(float(reference["grad_d_output_weight_norm"]), rel=1e-4)


def test_both_heads(reference, made, pictures):
    _, with_head, discriminator = made
    source, target, seen = pictures
    labels = torch.from_numpy(reference["labels"]).long()
    with torch.no_grad():
        for name, scores, aims in zip(("out", "aux"), with_head.both(source), with_head.both(target), strict=True):
            close(F.cross_entropy(scores, labels), reference[f"uda2_seg_{name}"])
            close(belief(discriminator, aims.softmax(1), seen, SOURCE), reference[f"uda2_adv_{name}"])
