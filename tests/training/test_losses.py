"""The losses of the inner steps: against numpy, PyTorch's optimisers, and what is exported."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeadapt.bundle import open_bundle
from edgeadapt.cli import main
from edgeadapt.errors import ConfigError
from edgeadapt.export.source import open_source
from edgeadapt.export.trust import DEBLUR_FACTORY, LOSS_FACTORY
from edgeadapt.runtime.session import Session
from edgeadapt.testing import photo
from edgeadapt.training.checkpoint import (
    Checkpoint,
    LearnedAdaptation,
    adaptation_fields,
    save_checkpoint,
)
from edgeadapt.training.data import to_tensor
from edgeadapt.training.inner import adapt, forward
from edgeadapt.training.losses import LOSSES, LossNet, build, loss_terms
from edgeadapt.training.meta import MetaStage
from edgeadapt.training.network import DeblurNet
from edgeadapt.training.network import build as build_network
from support.tiny_training import NETWORK, images, tiny_config, tiny_network


def with_loss(network: DeblurNet, loss: str) -> LossNet:
    other = LossNet(network.config, loss).double()
    other.load_state_dict(network.state_dict())
    return other


def half(image: np.ndarray) -> np.ndarray:
    return (
        image[..., ::2, ::2]
        + image[..., 1::2, ::2]
        + image[..., ::2, 1::2]
        + image[..., 1::2, 1::2]
    ) / 4


def by_hand(loss: str, network: DeblurNet, image: torch.Tensor) -> list[float]:
    outputs = network(image)
    reconstructed = [output.detach().numpy() for output in outputs.reconstructed]
    restored = [output.detach().numpy() for output in outputs.restored]
    blurred = image.numpy()
    errors = [reconstructed[0] - blurred, reconstructed[1] - half(blurred)]
    if loss == "l2":
        return [float(np.mean(error**2)) for error in errors]
    if loss == "charbonnier":
        return [float(np.mean(np.hypot(error, 1e-3))) for error in errors]
    terms = [float(np.mean(np.abs(error))) for error in errors]
    if loss == "scales":
        terms.append(float(np.mean(np.abs(half(restored[0]) - restored[1]))))
    if loss == "again":
        twice = network(torch.from_numpy(restored[0])).restored[0].detach().numpy()
        terms.append(float(np.mean(np.abs(twice - restored[0]))))
    return terms


@pytest.mark.parametrize("loss", LOSSES)
def test_the_terms_are_their_formula(loss: str) -> None:
    network, image = tiny_network(1), images(2, 2)[0]
    run = partial(forward, network, dict(network.named_parameters()))
    expected = by_hand(loss, network, image)
    for found in (
        loss_terms(loss, network, run, image),
        with_loss(network, loss).adaptation_loss(image),
    ):
        assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_l1_is_the_papers() -> None:
    network, image = tiny_network(3), images(4, 1)[0]
    assert torch.equal(
        with_loss(network, "l1").adaptation_loss(image), network.adaptation_loss(image)
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_inner_steps_lower_the_loss_they_are_told(loss: str) -> None:
    network, image = tiny_network(1), images(2, 1)[0]
    start = dict(network.named_parameters())
    sizes = {name: torch.tensor(0.02, dtype=torch.float64) for name in start}
    adapted = adapt(network, start, image, sizes, 3, "sgd", True, loss)
    other = with_loss(copy.deepcopy(network), loss)
    steps = torch.optim.SGD(other.parameters(), lr=0.02)
    losses = []
    for _ in range(3):
        steps.zero_grad()
        value = other.adaptation_loss(image).sum()
        torch.autograd.backward(value)
        steps.step()
        losses.append(value.item())
    assert [float(value) for value in adapted.losses] == pytest.approx(losses, rel=1e-9)
    assert losses[-1] < losses[0]
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(adapted.parameters[name], parameter, rtol=1e-8, atol=1e-9)


def test_meta_training_adapts_by_the_loss_of_its_configuration() -> None:
    first = {}
    for loss in LOSSES:
        stage = MetaStage(tiny_network(1), tiny_config(meta={"loss": loss}))
        blurred, sharp = images(2, 1)
        first[loss] = float(stage.gradients(blurred, sharp)[1]["adaptation_first"])
        assert first[loss] == pytest.approx(sum(by_hand(loss, tiny_network(1), blurred)))
    assert len(set(first.values())) == len(LOSSES)


def checkpoint(loss: str | None) -> Checkpoint:
    """One of meta training; with None as versions before there was a choice wrote them."""
    torch.manual_seed(0)
    network = DeblurNet(NETWORK)
    config = asdict(tiny_config())
    if loss is None:
        del config["meta"]["loss"]
    else:
        config["meta"]["loss"] = loss
    adaptation = adaptation_fields(LearnedAdaptation(2, "sgd", 1e-2))
    return Checkpoint("meta", asdict(NETWORK), network.state_dict(), adaptation, config, 1, 1.0, {})


@pytest.mark.parametrize("loss", [None, "charbonnier", "again"])
def test_a_bundle_lowers_the_loss_that_its_checkpoint_was_trained_with(
    loss: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "best.pt", checkpoint(loss))
    bundle = tmp_path / "net.bundle"
    assert main(["export", str(tmp_path / "best.pt"), "-o", str(bundle)]) == 0
    model = open_bundle(bundle).manifest.model
    own = loss not in (None, "l1")
    assert model.factory == (LOSS_FACTORY if own else DEBLUR_FACTORY)
    torch.manual_seed(0)
    network = (build(**model.options) if own else build_network(**model.options)).double()
    network.load_state_dict(open_source(str(tmp_path / "best.pt"), {}, None).network.state_dict())
    picture = photo(3, 24, 32)
    image = to_tensor([picture]).double()
    with Session(bundle) as session:
        losses = session.adapt(picture, 2).losses
    expected = sum(by_hand(loss or "l1", network, image))
    assert losses[0] == pytest.approx(expected, rel=1e-5)  # float32, some thousand operations
    assert losses[-1] < losses[0]
    # Its own code is trusted: everything is compared with PyTorch in float64, unasked.
    assert main(["check", str(bundle), "--checkpoint", str(tmp_path / "best.pt")]) == 0
    assert "within bounds" in capsys.readouterr().out


def test_a_loss_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss: must be l1 \| l2 \| .*, got 'l3'"):
        LossNet(NETWORK, "l3")
    with pytest.raises(ConfigError, match=r"meta\.loss: must be l1"):
        tiny_config(meta={"loss": "l3"})
    blind = DeblurNet(replace(NETWORK, aux_branch=False)).double()
    with pytest.raises(ValueError, match="aux_branch = false"):
        loss_terms("again", blind, blind, images(1, 1)[0])
