"""Networks: what they are made of, what they refuse, what they cost."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn
from torch.nn import functional as F  # noqa: N812

from runyard import models
from runyard.config.schema import ModelConfig, read_dataclass
from runyard.errors import UserError
from runyard.models import summary
from tests.support.settings import ROOT

CONFIGS = ROOT / "configs" / "model"


def make(name: str, image_size: int = 32, **changed: Any) -> nn.Module:
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | changed
    torch.manual_seed(0)
    return models.build(read_dataclass(ModelConfig, values, "model."), 10, image_size)


def test_the_papers_network_has_exactly_4693962_parameters() -> None:
    assert models.trainable_parameters(make("paper_resnet")) == 4_693_962


@pytest.mark.parametrize("changed", [{"shortcut": "conv1x1"}, {"blocks": [3, 4, 6, 3]}, {"widths": [64, 64, 128, 128]}])
def test_every_other_shape_of_the_papers_network_has_another_count(changed: dict[str, Any]) -> None:
    assert models.trainable_parameters(make("paper_resnet", **changed)) != 4_693_962


def test_the_papers_network_has_the_stages_of_its_table() -> None:
    rows = {row["name"]: row["output"] for row in summary.summarize(make("paper_resnet"), 32)["layers"]}
    wanted = {
        "stem.3": [64, 32, 32],
        "stages.0.2.conv2": [64, 32, 32],
        "stages.1.3.conv2": [64, 32, 32],
        "stages.2.5.conv2": [128, 16, 16],
        "stages.3.1.conv2": [256, 8, 8],
        "head": [10],
    }
    assert {name: rows[name] for name in wanted} == wanted
    assert "stages.1.0.shortcut.0" not in rows
    assert "stages.2.0.shortcut.0" in rows


def test_a_block_that_starts_at_zero_is_its_shortcut_and_by_default_it_is_not() -> None:
    x = torch.rand(2, 64, 8, 8)
    for zero, same in ((True, True), (False, False)):
        block = make("paper_resnet", zero_init_residual=zero).get_submodule("stages.0.0").eval()
        with torch.no_grad():
            assert torch.equal(block(x), x) is same


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"widths": [64, 64]}, "expected lists of one length"),
        ({"widths": [], "blocks": []}, "expected lists of one length"),
        ({"blocks": [3, 4, 0, 2]}, r"model\.blocks=.*at least 1"),
        ({"widths": [64, 64, -1, 2]}, r"model\.widths=.*at least 1"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0"),
        ({"shortcut": "conv2x2"}, r"model\.shortcut=conv2x2: expected one of conv3x3, conv1x1"),
        ({"drop_out": 0.1}, r"unknown setting model\.drop_out: did you mean model\.dropout"),
    ],
)
def test_a_papers_network_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("paper_resnet", **changed)


def test_an_unknown_network_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"model\.name=paper_restnet: .*did you mean paper_resnet\?"):
        models.build(ModelConfig(name="paper_restnet", max_parameters=None, options={}), 10, 32)


def test_a_network_over_the_limit_is_refused_and_one_at_the_limit_is_not() -> None:
    make("paper_resnet", max_parameters=4_693_962)
    with pytest.raises(UserError, match=r"4,693,962 .*model\.max_parameters=4,693,961"):
        make("paper_resnet", max_parameters=4_693_961)


def test_every_network_has_a_config_and_every_config_a_network() -> None:
    assert models.model_names() == sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", models.model_names())
def test_every_network_learns_in_bf16_and_channels_last(name: str) -> None:
    small = {"paper_resnet": {"widths": [8, 16], "blocks": [1, 1]}}.get(name, {})
    network = make(name, **small).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(4, 32, 32, 3).permute(0, 3, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    assert logits.shape == (4, 10)
    F.cross_entropy(logits.float(), torch.arange(4)).backward()
    for parameter in network.parameters():
        assert (parameter.grad is not None and bool(parameter.grad.isfinite().all())) is parameter.requires_grad


def test_importing_the_networks_leaves_torchvision_alone() -> None:
    code = "import sys, runyard.models.torchvision, runyard.models.summary; print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# starter


def correlated(count: int = 600) -> torch.Tensor:
    """Images whose neighbouring pixels and colours go together, as photographs' do."""
    rng = torch.Generator().manual_seed(1)
    base = F.avg_pool2d(torch.randn(count, 3, 36, 36, generator=rng), 5, stride=1)
    return base + 0.7 * base.mean(1, keepdim=True)


@pytest.mark.parametrize(("kernel", "stride", "filters"), [(2, 1, 12), (3, 1, 27), (4, 2, 16)])
def test_the_first_layer_whitens_patches(kernel: int, stride: int, filters: int) -> None:
    network = make("starter", stem_kernel=kernel, stem_stride=stride, stem_filters=filters)
    images = 30 * correlated()  # far above the floor that keeps noise small

    def covariance() -> torch.Tensor:
        with torch.no_grad():
            out = F.conv2d(images, network.whiten.weight[:filters], stride=stride)  # type: ignore[union-attr]
        return torch.cov(out.transpose(0, 1).flatten(1))

    assert not torch.allclose(covariance(), torch.eye(filters), atol=0.05)
    network.init_from_data(images)  # type: ignore[operator]
    assert torch.allclose(covariance(), torch.eye(filters), atol=0.05)
    weight = network.whiten.weight  # type: ignore[union-attr]
    assert torch.equal(weight[:filters], -weight[filters:])  # type: ignore[index]


def test_the_first_layer_does_not_depend_on_how_the_images_lie_in_memory() -> None:
    images, made = correlated(), []
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        network = make("starter")
        network.init_from_data(given)  # type: ignore[operator]
        made.append(network.whiten.weight.clone())  # type: ignore[union-attr, operator]
    assert torch.equal(*made)


def test_the_starter_trains_about_three_tenths_of_a_million_parameters_and_not_its_first_layer() -> None:
    network = make("starter")
    assert 250_000 < models.trainable_parameters(network) < 350_000
    assert not network.whiten.weight.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stem_stride": 5}, r"model\.stem_stride=5: expected at most model\.stem_kernel=4"),
        ({"stem_filters": 49}, r"model\.stem_filters=49: expected at most 48"),
        ({"widths": []}, r"model\.widths=\[\]"),
        ({"widths": [8] * 5}, r"data\.image_size=32: .* 5 stages"),
        ({"stem_kernel": 0}, r"model\.stem_kernel=0"),
    ],
)
def test_a_starter_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("starter", **changed)


# torchvision


def test_a_small_stem_keeps_the_resolution_that_imagenets_gives_away() -> None:
    for stem, side in (("small", 32), ("imagenet", 8)):
        rows = {row["name"]: row["output"] for row in summary.summarize(make("torchvision", stem=stem), 32)["layers"]}
        assert rows["layer1.0.conv1"] == [64, side, side]


@pytest.mark.parametrize(
    ("arch", "image_size", "small"),
    [("resnet18", 32, True), ("resnet18", 63, True), ("resnet18", 64, False), ("mobilenet_v2", 32, False)],
)
def test_by_itself_torchvisions_stem_is_small_for_a_resnet_of_small_images_and_the_network_says_so(
    arch: str, image_size: int, small: bool
) -> None:
    network = make("torchvision", image_size=image_size, arch=arch)
    assert getattr(network, "description", None) == (f"{arch} with a small stem" if small else None)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert (first.stride == (1, 1)) is small


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arch": "resnt18"}, r"model\.arch=resnt18: .*did you mean resnet18\?"),
        ({"arch": "fasterrcnn_resnet50_fpn"}, r"no such classifier"),
        ({"arch": "mobilenet_v2", "stem": "small"}, r"model\.stem=small: defined for resnet, resnext and wide_resnet"),
        ({"arch": "alexnet", "stem": "imagenet"}, r"model\.arch=alexnet cannot take data\.image_size=32"),
        ({"stem": "tiny"}, r"model\.stem=tiny: expected one of auto, imagenet, small"),
    ],
)
def test_what_torchvision_has_not_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("torchvision", **changed)


def test_a_network_with_a_second_head_gives_logits_alone() -> None:
    network = make("torchvision", image_size=64, arch="googlenet", stem="imagenet")
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


# summary


def test_the_papers_network_costs_1_17_billion_multiply_adds() -> None:
    found = summary.summarize(make("paper_resnet"), 32)
    assert found["parameters"] == 4_693_962
    assert (round(found["multiply_adds"] / 1e9, 2), round(found["train_gflop"], 1)) == (1.17, 7.0)


def test_multiply_adds_are_those_counted_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 5))
    found = summary.summarize(network, 8)
    by_hand = {"0": 8 * 8 * 6 * 1 * 9, "3": 6 * 64 * 5}
    assert {row["name"]: row["multiply_adds"] for row in found["layers"]} == by_hand
    assert found["multiply_adds"] == sum(by_hand.values())


PUBLISHED = [("resnet50", 25_557_032, 4.09), ("vit_b_32", 88_224_232, 4.41)]  # torchvision's own figures


@pytest.mark.parametrize(("arch", "parameters", "giga"), PUBLISHED)
def test_totals_are_torchvisions_own(arch: str, parameters: int, giga: float) -> None:
    torch.manual_seed(0)
    options = {"arch": arch, "stem": "imagenet"}
    network = models.build(ModelConfig(name="torchvision", max_parameters=None, options=options), 1000, 224)
    found = summary.summarize(network, 224)
    assert found["parameters"] == parameters
    assert found["multiply_adds"] / 1e9 == pytest.approx(giga, abs=0.01 if arch == "resnet50" else 0.05)
    for total in ("parameters", "multiply_adds"):
        assert sum(row[total] for row in found["layers"]) == found[total]


def test_a_summary_is_plain_json_and_a_table_and_leaves_the_network_as_it_was() -> None:
    network = make("starter")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = summary.summarize(network, 32)
    assert json.loads(json.dumps(found)) == found
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary.summary_table(found, "starter"))
    text = console.export_text()
    assert f"{found['parameters']:,} ({found['trainable_parameters']:,} trained)" in text
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
