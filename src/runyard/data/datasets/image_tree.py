"""Finds the images of an image folder, in the layouts that people have, and counts whatever it passes over.

- ``train/CLASS/*`` and ``test/CLASS/*``; ``val/``, ``valid/`` or ``validation/`` is the validation split beside
  ``test/``, and the test split without it.
- A split as Tiny-ImageNet and ImageNet have it: one folder of images, and a file that names the class of each.
- ``CLASS/*`` alone, or ``train/`` alone, of which ``data.test_fraction`` holds the test split out.

Links to folders are followed. Each folder is entered once for a class, so a link that leads back makes no loop.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runyard.data.datasets.imagefolder import printable_path
from runyard.errors import UserError
from runyard.files import file_fix, read_regular

TEST, VALIDATION = ("test",), ("val", "valid", "validation")
LAYOUTS = "train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg with data.test_fraction=0.2"
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
TEXT_SUFFIXES = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".md", ".yaml", ".yml", ".log", ".ini"}
MIN_CLASSES = 2


@dataclass(frozen=True)
class ImageTree:
    """The images of an image folder: for each split by class and name, with labels int64 [len(files)].

    Attributes:
        left_out: Path relative to the root and kind of each file and folder that was passed over.
    """

    classes: tuple[str, ...]
    splits: dict[str, tuple[list[Path], np.ndarray]]
    left_out: list[tuple[str, str]]


def no_image_by_name(name: str) -> str | None:
    """Return the kind of a file or folder that is plainly no image or class by its name; None for any other."""
    if name.lower() in SYSTEM_NAMES:
        return "system file"
    if name.startswith("."):  # .DS_Store, ._x.jpg, .nfs*, .ipynb_checkpoints
        return "hidden"
    return "text file" if os.path.splitext(name)[1].lower() in TEXT_SUFFIXES else None


def utf8_name(name: str) -> str | None:
    """Return a file's name as its bytes are in UTF-8, whatever the locale has made of them; None if they are not."""
    try:
        return os.fsencode(name).decode()
    except UnicodeDecodeError:
        return None


def scan_tree(root: Path, *, test_fraction: float = 0.0) -> ImageTree:
    """Find the image files under ``root``. The classes are the folders of the training split, sorted by name.

    Args:
        test_fraction: Above 0, the test split will be held out of the images that are found.

    Raises:
        UserError: a folder is missing, unreadable, or empty, or the splits have different classes.
    """
    walk = _Walk(root)
    try:
        if not root.is_dir():
            raise UserError(f"data.path={root}: there is no such folder", f"expected {LAYOUTS}")
        return _scan(walk, test_fraction)
    except OSError as error:
        raise UserError(
            f"{printable_path(error.filename)}: cannot read it ({error.strerror})", file_fix(error)
        ) from None


@dataclass
class _Walk:
    root: Path
    left_out: dict[Path, str] = field(default_factory=dict)

    def entries(self, folder: Path) -> tuple[list[str], list[Path]]:
        """Return the names of the folders and the paths of the other files in ``folder``, less what is left out."""
        folders, files = [], []
        with os.scandir(folder) as found:
            for entry in found:
                path = folder / entry.name
                if (kind := no_image_by_name(entry.name)) is not None:
                    self.left_out[path] = kind
                elif entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file() or entry.is_symlink():  # a link that leads nowhere is a damaged image
                    files.append(path)
                else:
                    self.left_out[path] = "not a regular file"
        return sorted(folders), sorted(files)

    def class_folders(self, folder: Path) -> list[str]:
        """Return the names of the folders in ``folder``, less links that lead back to it or above."""
        above = _above(folder)
        names = []
        for name in self.entries(folder)[0]:
            if _identity(folder / name) in above:
                self.left_out[folder / name] = "link to a folder above it"
            else:
                names.append(name)
        return names

    def images(self, folder: Path) -> list[Path]:
        """Return the files in ``folder`` and in all folders below it, sorted."""
        entered = _above(folder)
        files, rest = [], [folder]
        while rest:
            names, found = self.entries(here := rest.pop())
            files += found
            for name in reversed(names):
                if (identity := _identity(here / name)) in entered:
                    self.left_out[here / name] = "link to a folder that was read"
                else:
                    entered.add(identity)
                    rest.append(here / name)
        return sorted(files)


def _above(folder: Path) -> set[tuple[int, int]]:
    return {_identity(path) for path in (folder, *folder.absolute().parents)}


def _identity(folder: Path) -> tuple[int, int]:
    folder_stat = folder.stat()
    return folder_stat.st_dev, folder_stat.st_ino


def _scan(walk: _Walk, test_fraction: float) -> ImageTree:
    root = _inner_root(walk)
    train = root / "train" if (root / "train").is_dir() else root
    classes = tuple(walk.class_folders(train))
    if train == root and (splits_alone := [name for name in classes if name in (*TEST, *VALIDATION)]):
        raise UserError(f"data.path={root}: {splits_alone[0]}/ and no train/ in it", f"expected {LAYOUTS}")
    if len(classes) < MIN_CLASSES:
        raise UserError(
            f"{printable_path(train)}: {len(classes)} class folders; expected at least {MIN_CLASSES}", f"give {LAYOUTS}"
        )
    class_names = []
    for name in classes:
        if (class_name := utf8_name(name)) is None:
            raise UserError(f"{printable_path(train / name)}: the name of this class is not UTF-8", "rename the folder")
        class_names.append(class_name)
    splits = {"train": _by_class(walk, train, classes)}
    if train != root:
        splits |= _other_splits(walk, root, classes)
    if ("test" in splits) == (test_fraction > 0):
        raise (
            _no_test(root, train)
            if test_fraction == 0
            else UserError(
                f"data.test_fraction={test_fraction}: {printable_path(root)} has a test split already",
                "set data.test_fraction=0",
            )
        )
    counts = np.bincount(splits["train"][1], minlength=len(classes))
    if not counts.all():
        empty = train / classes[int(np.argmin(counts))]
        raise UserError(f"{printable_path(empty)}: a class without files", "fill or remove the folder")
    left_out = [(printable_path(path.relative_to(walk.root)), kind) for path, kind in sorted(walk.left_out.items())]
    return ImageTree(tuple(class_names), splits, left_out)


def _inner_root(walk: _Walk) -> Path:
    """Return the folder that holds the splits or classes: the root, or the one in it that an archive made."""
    root = walk.root
    while len(names := walk.class_folders(root)) == 1 and names != ["train"]:
        if len(walk.class_folders(root / names[0])) < 1:
            return walk.root
        root /= names[0]
    return root


def _no_test(root: Path, train: Path) -> UserError:
    where = "class folders alone" if train == root else "no labelled test/, val/, valid/ or validation/ beside train/"
    return UserError(
        f"data.path={root}: {where}",
        "hold a test split out with data.test_fraction=0.2 (and data.validation_fraction=0.1 for a validation split)",
    )


def _other_splits(walk: _Walk, root: Path, classes: tuple[str, ...]) -> dict[str, tuple[list[Path], np.ndarray]]:
    """Return the test split and, if there are two more with labels, the validation split."""
    found = []
    for names in (TEST, VALIDATION):
        present = [root / name for name in names if (root / name).is_dir()]
        if len(present) > 1:
            raise UserError(
                f"{printable_path(root)}: {' and '.join(f'{p.name}/' for p in present)} are both there", "remove one"
            )
        for folder in present:
            if (split := _labelled(walk, folder, classes)) is not None:
                found.append(split)
            else:
                walk.left_out[folder] = "without labels"
    return dict(zip(("test", "validation"), found, strict=False))


def _labelled(walk: _Walk, folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray] | None:
    """Return the images of ``folder`` by class, or as an annotation file says; None if they have no labels."""
    if (annotations := _annotation_file(folder)) is not None:
        return _annotated(walk, folder, annotations, classes)
    names = walk.class_folders(folder)
    if names in ([], ["images"]) and "images" not in classes:
        return None
    if unknown := [name for name in names if name not in classes]:
        raise UserError(
            f"{printable_path(folder / unknown[0])}: train/ has no class of this name",
            "give it the name of its class, or move it elsewhere",
        )
    return _by_class(walk, folder, classes)


def _by_class(walk: _Walk, folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            class_files = walk.images(folder / name)
            files += class_files
            labels += [label] * len(class_files)
    for path in walk.entries(folder)[1]:
        walk.left_out[path] = "in no class folder"
    if not files:
        raise UserError(f"{printable_path(folder)}: no files in its class folders", "expected CLASS/*.jpg")
    return files, np.array(labels, np.int64)


def _annotation_file(folder: Path) -> Path | None:
    """Return Tiny-ImageNet's ``val/val_annotations.txt`` or, as on Kaggle, ImageNet's ``LOC_val_solution.csv``."""
    name = folder.name
    places = (folder / f"{name}_annotations.txt", folder.parent / f"LOC_{name}_solution.csv")
    return next((path for path in places if path.is_file()), None)


def _annotated(walk: _Walk, folder: Path, annotations: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    images = walk.images(folder)
    by_name = {path.name: path for path in images} | {path.stem: path for path in images}
    text = os.fsdecode(read_regular(annotations))  # as the names of files are read
    separator = "\t" if annotations.suffix == ".txt" else ","
    rows = [row for row in csv.reader(text.splitlines(), delimiter=separator, quoting=csv.QUOTE_NONE) if row]
    if rows and rows[0][0] == "ImageId":
        rows = rows[1:]
    label_of: dict[Path, int] = {}
    for row in rows:
        class_name = row[1].split(" ")[0] if len(row) > 1 else ""
        if class_name not in classes or row[0] not in by_name:
            problem = f"{class_name!r} is no class of train/" if row[0] in by_name else "there is no such image"
            raise UserError(f"{printable_path(annotations)}: {row[0]}: {problem}", "correct the file")
        label_of[by_name[row[0]]] = classes.index(class_name)
    for path in images:
        if path not in label_of:
            walk.left_out[path] = f"not in {annotations.name}"
    if not label_of:
        raise UserError(f"{printable_path(annotations)}: it names no image", "correct the file")
    files = sorted(label_of, key=lambda path: (label_of[path], path))
    return files, np.array([label_of[path] for path in files], np.int64)
