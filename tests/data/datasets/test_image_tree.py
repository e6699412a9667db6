"""An image folder is taken as people have it: nothing is lost, nothing is read twice, what is no image is counted."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runyard.cli.commands.prepare import changed_files_text
from runyard.config.data_validation import check_data
from runyard.config.schema import DataConfig
from runyard.data import manifest
from runyard.data.datasets.image_tree import ImageTree, scan_tree
from runyard.data.prepare import gather
from runyard.data.prepare.pipeline import prepare_dataset
from runyard.errors import UserError

Settings = Callable[..., DataConfig]


def images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((24, 24, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def sizes(tree: ImageTree) -> dict[str, int]:
    return {split: len(files) for split, (files, _) in tree.splits.items()}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/{ant,zebra} with 8 images each, and test/ with 3 each."""
    for part, count in (("train", 8), ("test", 3)):
        for name in ("zebra", "ant"):
            images(tmp_path / "tree" / part / name, count)
    return tmp_path / "tree"


@pytest.fixture
def classes_alone(tmp_path: Path) -> Path:
    """{ant,zebra} with 10 images each, without a split."""
    for name in ("zebra", "ant"):
        images(tmp_path / "flat" / name, 10)
    return tmp_path / "flat"


def folder_config(settings: Settings, path: Path, **changes: object) -> DataConfig:
    return settings(
        kind="imagefolder", name="animals", sources=["disk"], path=str(path), samples=None, num_classes=None,
        root=str(path.parent / "data"), **changes,
    )  # fmt: skip


def gathered(data: DataConfig, tmp_path: Path) -> gather.DatasetLayout:
    shutil.rmtree(work := tmp_path / "work", ignore_errors=True)
    (work / "sources").mkdir(parents=True)
    return gather.layout_tree(data, work, work / "sources", lambda what, done, total: None)


def test_classes_and_files_come_in_order_of_their_names(tree: Path) -> None:
    found = scan_tree(tree)
    assert (found.classes, list(found.splits), found.left_out) == (("ant", "zebra"), ["train", "test"], [])
    files, labels = found.splits["train"]
    assert files == [tree / "train" / c / f"{i}.png" for c in ("ant", "zebra") for i in range(8)]
    np.testing.assert_array_equal(labels, np.repeat([0, 1], 8))


def test_linked_folders_and_files_are_followed(tree: Path, tmp_path: Path) -> None:
    images(tmp_path / "elsewhere" / "inner", 5)
    (tree / "train/ant/more").symlink_to(tmp_path / "elsewhere")
    (tree / "train/zebra/one.png").symlink_to(tmp_path / "elsewhere/inner/0.png")
    (tree / "train/okapi").symlink_to(tmp_path / "elsewhere/inner")
    found = scan_tree(tree)
    assert found.classes == ("ant", "okapi", "zebra")
    assert np.bincount(found.splits["train"][1]).tolist() == [13, 5, 9]
    assert found.left_out == []


@pytest.mark.parametrize(
    ("link", "target", "kind"),
    [
        ("train/self", ".", "link to a folder above it"),
        ("train/ant/self", ".", "link to a folder that was read"),
        ("train/ant/up", "..", "link to a folder that was read"),
        ("train/ant/all", "../..", "link to a folder that was read"),
        ("train/ant/disk", "/", "link to a folder that was read"),
    ],
)
def test_a_link_that_leads_back_makes_no_loop_and_no_class(tree: Path, link: str, target: str, kind: str) -> None:
    before = scan_tree(tree)
    (tree / link).symlink_to(target)
    found = scan_tree(tree)
    assert (found.classes, sizes(found)) == (before.classes, sizes(before))
    assert found.left_out == [(link, kind)]


def test_two_links_to_each_other_are_read_once(tree: Path, tmp_path: Path) -> None:
    for here, there in ("ab", "ba"):
        images(tmp_path / here, 2)
        (tmp_path / here / "other").symlink_to(tmp_path / there)
    (tree / "train/ant/a").symlink_to(tmp_path / "a")
    found = scan_tree(tree)
    assert sizes(found)["train"] == 16 + 4
    assert found.left_out == [("train/ant/a/other/other", "link to a folder that was read")]


def test_what_is_no_image_by_its_name_is_left_out_and_counted(tree: Path, settings: Settings, tmp_path: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", ".nfs0001", "notes.txt", "labels.CSV"):
        (tree / "train/ant" / name).write_text("x")
    for folder in ("train/__MACOSX", "test/@eaDir", "train/ant/.ipynb_checkpoints", "__MACOSX"):
        images(tree / folder, 1)
    os.mkfifo(tree / "test/ant/pipe.png")
    (tree / "train/stray.png").write_bytes((tree / "train/ant/0.png").read_bytes())
    found = scan_tree(tree)
    assert sizes(found) == {"train": 16, "test": 6}
    assert Counter(kind for _, kind in found.left_out) == {
        "system file": 5, "hidden": 4, "text file": 2, "not a regular file": 1, "in no class folder": 1,
    }  # fmt: skip
    changed = gathered(folder_config(settings, tree), tmp_path).conversions  # with broken_images=refuse
    assert changed["left_out"]["files"] == 13
    text = changed_files_text(changed)
    assert "; 13 left out (5 system file, " in text
    assert text.endswith(": __MACOSX, test/@eaDir, test/ant/pipe.png, ...)")


def test_a_damaged_image_and_a_link_to_nowhere_are_not_left_out(tree: Path, settings: Settings) -> None:
    (tree / "train/ant/bad.jpg").write_bytes(b"no picture")
    (tree / "train/ant/gone.jpg").symlink_to("nowhere.jpg")
    told = r"2 broken or not images: train/ant/bad\.jpg \(not an image\), train/ant/gone\.jpg \(a link to a file that"
    with pytest.raises(UserError, match=told):
        prepare_dataset(folder_config(settings, tree), progress=False)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_the_test_split_unless_there_is_one(tree: Path, name: str) -> None:
    shutil.copytree(tree / "test", tree / name)
    (tree / name / "ant/0.png").unlink()
    assert sizes(scan_tree(tree)) == {"train": 16, "test": 6, "validation": 5}
    shutil.rmtree(tree / "test")
    assert sizes(scan_tree(tree)) == {"train": 16, "test": 5}


def tiny_imagenet(folder: Path) -> Path:
    for name in ("n01", "n02"):
        images(folder / "train" / name / "images", 4)
        (folder / "train" / name / f"{name}_boxes.txt").write_text("0.png\t1\t2\t3\t4\n")
    images(folder / "val/images", 4)
    lines = [f"{i}.png\tn0{1 + i % 2}\t0\t32\t44\t62\n" for i in (3, 0, 2, 1)]
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    images(folder / "test/images", 7)
    (folder / "wnids.txt").write_text("n01\nn02\n")
    return folder


def test_tiny_imagenets_layout_is_read(tmp_path: Path) -> None:
    found = scan_tree(tiny_imagenet(tmp_path / "tiny"))
    assert (found.classes, sizes(found)) == (("n01", "n02"), {"train": 8, "test": 4})
    files, labels = found.splits["test"]
    assert [(file.name, int(label)) for file, label in zip(files, labels, strict=True)] == [
        ("0.png", 0), ("2.png", 0), ("1.png", 1), ("3.png", 1),
    ]  # fmt: skip
    assert ("test", "without labels") in found.left_out


@pytest.mark.parametrize(
    ("line", "told"),
    [("9.png\tn01\n", r"9\.png: there is no such image"), ("0.png\tn77\n", "'n77' is no class of train/")],
)
def test_an_annotation_that_names_no_image_or_no_class_is_refused(tmp_path: Path, line: str, told: str) -> None:
    folder = tiny_imagenet(tmp_path / "tiny")
    (folder / "val/val_annotations.txt").write_text(line)
    with pytest.raises(UserError, match=rf"val_annotations\.txt: .*{told}"):
        scan_tree(folder)


def test_imagenets_flat_validation_images_are_read_with_their_solution(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        images(tmp_path / "train" / name, 2)
    images(tmp_path / "val", 2)
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n1,n01 3 4 5 6\n0,n02 1 2 3 4 n02 5 6 7 8\n"
    )
    files, labels = scan_tree(tmp_path).splits["test"]
    assert [(file.name, int(label)) for file, label in zip(files, labels, strict=True)] == [("1.png", 0), ("0.png", 1)]


def test_the_folder_that_an_archive_made_is_looked_into(tree: Path, tmp_path: Path) -> None:
    images(tmp_path / "unpacked/__MACOSX/ant", 3)
    tree.rename(tmp_path / "unpacked/animals")
    assert sizes(scan_tree(tmp_path / "unpacked")) == {"train": 16, "test": 6}


def test_class_folders_alone_are_split_stratified_and_seeded_and_the_list_is_kept(
    classes_alone: Path, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"class folders alone; .*data\.test_fraction=0\.2"):
        scan_tree(classes_alone)
    data = folder_config(settings, classes_alone, test_fraction=0.2, validation_fraction=0.25)
    assert manifest.dataset_dir(data).name == "animals-16px-test0.2-val0.25-seed0"
    layout = gathered(data, tmp_path)
    counts = {name: np.bincount(np.load(job.labels)).tolist() for name, job in layout.jobs.items()}
    assert counts == {"train": [6, 6], "test": [2, 2], "validation": [2, 2]}
    held_out = layout.conversions["held_out"]
    assert {split: len(set(names)) for split, names in held_out.items()} == {"test": 4, "validation": 4}
    kept = [Path(file) for file in json.loads(Path(layout.jobs["train"].images).read_text())]
    names = [*(str(file.relative_to(classes_alone)) for file in kept), *held_out["test"], *held_out["validation"]]
    assert sorted(names) == sorted(f"{c}/{i}.png" for c in ("ant", "zebra") for i in range(10))
    alone = gathered(folder_config(settings, classes_alone, test_fraction=0.2), tmp_path)
    assert alone.conversions["held_out"] == {"test": held_out["test"]}  # whatever else is held out
    other = gathered(folder_config(settings, classes_alone, test_fraction=0.2, split_seed=1), tmp_path)
    assert other.conversions["held_out"] != alone.conversions["held_out"]


@pytest.mark.parametrize(
    ("change", "fraction", "words"),
    [
        (lambda t: shutil.rmtree(t / "test"), 0, r"no labelled test/.*data\.test_fraction=0\.2"),
        (lambda t: shutil.move(t / "train", t / "training"), 0.2, "test/ and no train/ in it; expected train/CLASS"),
        (lambda t: None, 0.2, r"data\.test_fraction=0\.2: .* has a test split already; set data\.test_fraction=0"),
        (lambda t: (t / "train/zebra").rename(t / "train/.zebra"), 0, "1 class folders"),
        (lambda t: (t / "test/zebra").rename(t / "test/okapi"), 0, r"okapi: train/ has no class .*move it elsewhere"),
        (lambda t: (t / "train/bat").mkdir(), 0, "train/bat: a class without files"),
        (lambda t: [shutil.copytree(t / "test", t / n) for n in ("val", "valid")], 0, "val/ and valid/ are both there"),
        (lambda t: shutil.rmtree(t), 0, "there is no such folder"),
        (lambda t: os.mkdir(os.fsencode(t) + b"/train/\xff"), 0, r"train/\\udcff: .* is not UTF-8; rename"),
    ],
    ids=["no test", "no train", "two tests", "one class", "another class", "empty class", "two vals", "none", "bytes"],
)  # fmt: skip
def test_a_tree_of_another_shape_is_refused(
    tree: Path, change: Callable[[Path], object], fraction: float, words: str
) -> None:
    change(tree)
    with pytest.raises(UserError, match=words):
        scan_tree(tree, test_fraction=fraction)


def test_a_validation_fraction_beside_a_validation_split_and_a_path_that_is_not_given_are_named(
    tree: Path, settings: Settings
) -> None:
    shutil.copytree(tree / "test", tree / "val")
    with pytest.raises(UserError, match=r"data\.validation_fraction=0\.2: .* has a validation split already"):
        prepare_dataset(folder_config(settings, tree, validation_fraction=0.2), progress=False)
    with pytest.raises(UserError, match=r"set data\.path=FOLDER"):
        prepare_dataset(settings(**{**vars(folder_config(settings, tree)), "path": None}), progress=False)
    with pytest.raises(UserError, match=r"data\.test_fraction=0\.2: belongs to data\.kind=imagefolder"):
        check_data(settings(test_fraction=0.2))


NAMES = """
import sys
from pathlib import Path
from runyard.data.datasets.image_tree import scan_tree
from runyard.predict import open_images

tree = scan_tree(Path(sys.argv[1]))
print(ascii((tree.classes, tree.splits["test"][1].tolist(), open_images(Path(sys.argv[1]) / "test", 8).ids)))
print(sys.getfilesystemencoding())
"""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_are_what_their_bytes_say_whatever_the_locale(tree: Path, encoding: str) -> None:
    (tree / "train" / "zebra").rename(tree / "train" / "zébra")
    (tree / "test" / "zebra" / "0.png").rename(tree / "test" / "größe.png")
    for name in ("ant", "zebra"):
        shutil.rmtree(tree / "test" / name)
    (tree / "test" / "test_annotations.txt").write_text("größe.png\tzébra\n", "utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": str(int(encoding == "utf-8")), "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", NAMES, str(tree)]
    done = subprocess.run(command, env=os.environ | locale, capture_output=True, text=True)
    said, used = done.stdout.splitlines() or [done.stderr, ""]
    assert (ast.literal_eval(said), used) == ((("ant", "zébra"), [1], ["größe"]), encoding)
