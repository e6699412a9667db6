"""Labels for images that have none: every image its row, in order, or one line that says what is wrong."""

import csv
import json
import os
import pickle

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from runyard import predict as prediction
from runyard.config import schema
from runyard.data import manifest
from runyard.errors import UserError
from runyard.predict import open_images, predict_to_csv
from runyard.runs.run import Run

SIZE, CLASSES = 8, ("dark", "red", "green", "blue")


class Brightest(nn.Module):
    """Class 1, 2 or 3 by the brightest channel of the left half of a picture; class 0 for a dark one."""

    def forward(self, x):
        left = x[:, :, :, : SIZE // 2].mean((2, 3))
        return torch.cat([torch.zeros(len(x), 1, device=x.device), left], 1)


@pytest.fixture
def run(tmp_path, make_config, monkeypatch):
    """A run whose network is ``Brightest``."""
    small = ("data=synthetic", f"data.image_size={SIZE}", "eval_batch_size=3", "augment=none")
    config = make_config("precision=fp32", *small)
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(schema.config_to_dict(config)))
    (path / "run.json").write_text(json.dumps({"format": "runyard-run-1", "id": "r"}))
    split = manifest.Split(1, "t.beton", "0" * 64, 1, None, None, {})
    splits = {"train": split, "test": split}
    data = manifest.Manifest("d", "cifar10", "s", CLASSES, SIZE, (0.5,) * 3, (0.25,) * 3, splits, {}, True)
    (path / "data.json").write_text(json.dumps(manifest.manifest_to_dict(data)))
    monkeypatch.setattr(prediction, "load_network", lambda run, which: Brightest().eval())
    return Run.open(path)


@pytest.fixture
def pictures():
    """uint8 [10, 8, 8, 3] and their classes."""
    wanted = np.array([0, 1, 2, 3, 3, 2, 1, 0, 2, 3])
    images = np.full((10, SIZE, SIZE, 3), 20, np.uint8)
    for at, label in enumerate(wanted):
        if label:
            images[at, :, :, label - 1] = 220
    return images, wanted


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def expected(wanted, ids=None):
    pairs = zip(ids or range(len(wanted)), wanted, strict=True)
    return [["ID", "Labels"], *([str(i), str(label)] for i, label in pairs)]


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "flat"])
@pytest.mark.parametrize("kind", ["npy", "npz", "pickle", "pickle-bytes"])
def test_every_array_layout_and_file_gives_the_same_labels_in_input_order(run, pictures, tmp_path, kind, layout):
    images, wanted = pictures
    array = images if layout == "NHWC" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    array = array.reshape(10, -1) if layout == "flat" else array
    path = tmp_path / "images"
    with open(path, "wb") as file:
        if kind == "npy":
            np.save(file, array)
        elif kind == "npz":
            np.savez(file, data=array, other=np.arange(3))
        else:
            pickle.dump({b"data" if kind == "pickle-bytes" else "data": array}, file)
    assert predict_to_csv(run, path, tmp_path / "out.csv") == 10
    assert rows(tmp_path / "out.csv") == expected(wanted)


def test_ids_beside_the_images_are_used(run, pictures, tmp_path):
    images, wanted = pictures
    ids = np.arange(10)[::-1] * 7
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({b"data": images, b"ids": ids}, protocol=2))
    predict_to_csv(run, tmp_path / "a.pkl", tmp_path / "out.csv")
    assert rows(tmp_path / "out.csv") == expected(wanted, [int(i) for i in ids])


def test_a_folder_is_read_in_natural_order_with_the_names_as_ids(run, pictures, tmp_path):
    images, wanted = pictures
    folder = tmp_path / "test"
    folder.mkdir()
    for at in range(10):
        Image.fromarray(images[at]).save(folder / f"{at + 1}.png")
    (folder / ".hidden").write_text("no image")
    predict_to_csv(run, folder, tmp_path / "out.csv")
    assert rows(tmp_path / "out.csv") == expected(wanted, range(1, 11))
    assert sorted(str(i) for i in range(1, 11))[1] == "10"  # negative control: the plain order is another


def test_a_folders_images_of_another_size_are_resized_and_cropped_to_the_middle(run, tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    wide = np.full((16, 64, 3), 20, np.uint8)
    wide[:, 24:40, 1] = 220  # green in the middle square only
    Image.fromarray(wide).save(folder / "wide.png")
    Image.fromarray(wide[:, 24:40, 1]).save(folder / "gray.png")
    predict_to_csv(run, folder, tmp_path / "out.csv", labels="name")
    assert rows(tmp_path / "out.csv")[2] == ["wide", "green"]


def test_class_names_and_column_names_can_be_asked_for(run, pictures, tmp_path):
    np.save(tmp_path / "a.npy", pictures[0])
    predict_to_csv(run, tmp_path / "a.npy", tmp_path / "out.csv", columns=("id", "label"), labels="name")
    assert rows(tmp_path / "out.csv")[:3] == [["id", "label"], ["0", "dark"], ["1", "red"]]


def test_flip_averages_with_the_mirrored_image(run, tmp_path):
    image = np.full((1, SIZE, SIZE, 3), 20, np.uint8)
    image[:, :, : SIZE // 2, 0] = 180  # red on the left
    image[:, :, SIZE // 2 :, 2] = 255  # more blue on the right
    np.save(tmp_path / "a.npy", image)
    predict_to_csv(run, tmp_path / "a.npy", tmp_path / "out.csv")
    assert rows(tmp_path / "out.csv")[1] == ["0", "1"]
    predict_to_csv(run, tmp_path / "a.npy", tmp_path / "out.csv", flip_tta=True)
    assert rows(tmp_path / "out.csv")[1] == ["0", "3"]


@pytest.mark.parametrize("batch_size", [1, 4, 10, 99])
def test_labels_do_not_depend_on_the_batch_size(run, pictures, tmp_path, batch_size):
    np.save(tmp_path / "a.npy", pictures[0])
    predict_to_csv(run, tmp_path / "a.npy", tmp_path / "out.csv", batch_size=batch_size)
    assert rows(tmp_path / "out.csv") == expected(pictures[1])


def test_the_checkpoint_that_was_asked_for_is_used(run, pictures, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(prediction, "load_network", lambda run, which: (asked.append(which), Brightest())[1])
    np.save(tmp_path / "a.npy", pictures[0])
    predict_to_csv(run, tmp_path / "a.npy", tmp_path / "out.csv", which="best")
    assert asked == ["best"]


def wrong_inputs():
    good = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    return {
        "float": good.astype(np.float32),
        "size": np.zeros((2, 9, 9, 3), np.uint8),
        "gray": good[..., 0],
        "flat size": np.zeros((2, 100), np.uint8),
        "empty": good[:0],
        "zero wide": np.zeros((2, 0), np.uint8),
        "scalar": np.uint8(3),
        "objects": np.array([None, {}], object),
        "text": np.array(["a"]),
    }


@pytest.mark.parametrize("name", list(wrong_inputs()))
@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_a_wrong_array_is_one_line_that_names_the_file(run, tmp_path, name, kind):
    path = tmp_path / "wrong"
    with open(path, "wb") as file:
        array = wrong_inputs()[name]
        if kind == "npy":
            np.save(file, array)
        elif kind == "npz":
            np.savez(file, data=array)
        else:
            pickle.dump({"data": array}, file)
    refused(run, path, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x93NUMPY", b"PK\x03\x04 cut", b"\x80\x04", b"\x89PNG\r\n\x1a\n", b"(dp0\n"]
)
def test_a_damaged_or_foreign_file_is_one_line(run, tmp_path, content):
    (tmp_path / "wrong").write_bytes(content)
    refused(run, tmp_path / "wrong", tmp_path)


@pytest.mark.parametrize(
    "content", [[1], {}, {"x": 1, "y": 2}, {"data": [1, 2]}, {"data": np.zeros((2, 8, 8, 3), np.uint8), "ids": [1]}]
)
def test_a_pickle_of_something_else_is_one_line(run, tmp_path, content):
    (tmp_path / "wrong").write_bytes(pickle.dumps(content))
    refused(run, tmp_path / "wrong", tmp_path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


def test_nothing_in_a_pickle_is_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").write_bytes(pickle.dumps({"data": Evil()}))
    refused(run, tmp_path / "evil", tmp_path)
    assert not (tmp_path / "was-run").exists()
    pickle.loads((tmp_path / "evil").read_bytes())  # negative control: a plain reader does run it
    assert (tmp_path / "was-run").exists()


def test_a_pickle_inside_an_array_file_is_not_read_either(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "evil.npy", np.array([Evil()], object), allow_pickle=True)
    refused(run, tmp_path / "evil.npy", tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_written(run, pictures, tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    Image.fromarray(pictures[0][0]).save(folder / "1.png")
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes()[:40])
    assert "2.png" in refused(run, folder, tmp_path)


def test_a_file_name_that_is_not_utf8_is_refused_before_any_work(run, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("runyard.predict.predict_classes", lambda *_, **__: pytest.fail("labelled first"))
    (folder := tmp_path / "images").mkdir()
    open(os.fsencode(folder) + b"/caf\xe9.png", "wb").close()
    with pytest.raises(UserError, match=r"/caf\\udce9\.png: its name is not UTF-8; rename it"):
        predict_to_csv(run, folder, tmp_path / "out.csv")


def test_what_is_no_image_by_its_name_gets_no_label(run, pictures, tmp_path):
    (folder := tmp_path / "images").mkdir()
    Image.fromarray(pictures[0][1]).save(folder / "1.png")
    for name in ("Thumbs.db", "notes.txt", "._1.png"):
        (folder / name).write_bytes(b"x")
    assert open_images(folder, SIZE).ids == ["1"]


def test_two_images_with_one_id_are_refused(run, pictures, tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    for name in ("1.png", "1.bmp"):
        Image.fromarray(pictures[0][0]).save(folder / name)
    assert "'1'" in refused(run, folder, tmp_path)


def test_an_empty_or_missing_folder_is_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "class").mkdir()
    refused(run, tmp_path / "empty", tmp_path)
    refused(run, tmp_path / "none", tmp_path)


def test_an_untrained_run_is_one_line(run, pictures, tmp_path):
    np.save(tmp_path / "a.npy", pictures[0])
    (run.path / "data.json").unlink()
    assert "has not been trained" in refused(run, tmp_path / "a.npy", tmp_path)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(run, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "load_network", lambda run, which: pytest.fail("work was begun"))
    np.save(tmp_path / "a.npy", pictures[0])
    for out in (tmp_path, tmp_path / "no" / "out.csv"):
        with pytest.raises(UserError, match="--out"):
            predict_to_csv(run, tmp_path / "a.npy", out)


def test_a_crash_while_writing_leaves_the_old_file(run, pictures, tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", pictures[0])
    out = tmp_path / "out.csv"
    out.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        predict_to_csv(run, tmp_path / "a.npy", out)
    assert out.read_text() == "old"


def test_an_array_on_disk_is_not_read_whole_and_one_cut_short_meanwhile_is_named(pictures, tmp_path):
    np.save(tmp_path / "a.npy", pictures[0])
    images = open_images(tmp_path / "a.npy", SIZE)
    os.truncate(tmp_path / "a.npy", (tmp_path / "a.npy").stat().st_size - 1)
    np.testing.assert_array_equal(images.read(2, 4), pictures[0][2:4])
    with pytest.raises(UserError, match=r"a\.npy: changed while it was read: \d+ bytes, and it had \d+"):
        images.read(8, 10)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_in_any_order_is_read(pictures, tmp_path, order):
    np.save(tmp_path / "a.npy", np.asarray(pictures[0], order=order))
    np.testing.assert_array_equal(open_images(tmp_path / "a.npy", SIZE).read(2, 4), pictures[0][2:4])


def refused(run, images, folder):
    """The message of the one-line refusal; nothing is left behind."""
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(UserError) as caught:
        predict_to_csv(run, images, folder / "out.csv")
    message = str(caught.value)
    assert "\n" not in message
    assert images.name in message or run.id in message
    assert sorted(p.name for p in folder.iterdir()) == before
    return message


@pytest.mark.parametrize("where", ["in place of the file", "in the folder"])
def test_a_fifo_is_refused_and_not_waited_for(run, pictures, tmp_path, where):
    folder = tmp_path / "images"
    folder.mkdir()
    os.mkfifo(folder / "a.png")
    images = folder / "a.png" if where == "in place of the file" else folder
    with pytest.raises(UserError, match=r"a\.png.*a FIFO \(named pipe\), not a regular file"):
        predict_to_csv(run, images, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
