"""What cannot be trained on one image a rank is refused before it is submitted."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
import typing

import pytest

from runyard.cluster.launch.checks import network
from runyard.cluster.launch.checks.check import CheckContext
from runyard.errors import UserError
from runyard.slurm_client import QueryError
from tests.support.settings import SMALL, compose

# Three of four stages halve the map, of 8 px to one of 1x1.
ONE_PIXEL = ("data.image_size=8", "augment.crop_padding_px=2", "model=paper_resnet", "model.widths=[8,16,32,64]")


def subject(*overrides: str) -> CheckContext:
    config = compose("cluster=slurm", "cluster.tasks_per_node=2", *SMALL, *overrides)
    return CheckContext(config, 2, "runyard prepare", False)


def test_one_image_a_rank_and_a_map_of_one_pixel_is_refused_in_one_line_with_what_would_do() -> None:
    small = [word for word in SMALL if not word.startswith("model")]
    config = compose("cluster=slurm", *small, *ONE_PIXEL, "batch_size=2")
    with pytest.raises(
        UserError, match=r"batch_size=2: each of 2 ranks gets one image.* batch norm.*; set batch_size=4"
    ):
        network.network_trains(CheckContext(config, 2, "runyard prepare", False))


def test_one_image_a_rank_is_fine_where_the_map_is_larger() -> None:
    assert network.network_trains(subject("batch_size=2")) == "one image at once"


def test_a_network_that_is_none_for_these_images_is_refused_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_this_process(command: list[str], *, input: str, **_: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        monkeypatch.delitem(sys.modules, command[2], raising=False)
        with pytest.raises(SystemExit) as end:
            runpy.run_module(command[2], run_name="__main__")
        return subprocess.CompletedProcess(command, typing.cast(int, end.value.code), capsys.readouterr().out, "")

    monkeypatch.setattr(subprocess, "run", in_this_process)  # which costs no second import of torch
    with pytest.raises(UserError, match=r"^data.image_size=16: .* 8 px, too few to be halved.*; shorten model.widths$"):
        network.network_trains(subject("batch_size=2", "model.widths=[16,16,16,16]"))
    ordinary = subject("model.widths=[16,16,16,16]")
    assert network.network_trains(ordinary) == "16 images at once", "what submit has no time to try, doctor tries"
    with pytest.raises(UserError, match="too few to be halved"):
        network.network_is_there(ordinary)


@pytest.mark.parametrize("overrides", [["batch_size=4"], ["batch_size=2", "sync_batch_norm=true"]])
def test_with_more_images_nothing_is_loaded(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runyard.cluster.launch.checks.network.sys.executable", "/nowhere")
    assert network.network_trains(subject(*overrides)) == "2 images at once"


def test_where_it_cannot_be_tried_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_failure", lambda _: "ImportError: libtorch.so: no such file")
    with pytest.raises(QueryError, match="could not be tried here: ImportError"):
        network.network_trains(subject("batch_size=2"))
