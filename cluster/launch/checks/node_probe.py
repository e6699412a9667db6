"""Reports what a compute node has as one line of JSON. ``runyard doctor`` runs it there, with its request as JSON.

It imports nothing of this project before it tests whether that can be imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

OUTPUT_PREFIX = "runyard-probe: "  # marks the line, since what starts Python may print other lines
MODULES = ("torch", "torchvision", "ffcv", "numba", "numpy", "cv2", "wandb", "submitit", "runyard.training.trainer")


def probe(request: dict[str, Any]) -> dict[str, object]:
    """Return the report.

    Args:
        request: ``shared_folder``, a folder in which this node creates a file; ``data``, a folder to read; ``wandb``,
            whether W&B is to be reached; ``stage``, a folder on the node's own disk, or null.
    """
    report: dict[str, object] = {"host": socket.gethostname(), "cpus": len(os.sched_getaffinity(0))}
    report |= {"python": sys.version.split()[0], "executable": sys.executable} | _imports() | _gpus()
    report["shared_folder"] = _check_shared_folder(Path(request["shared_folder"])) if request["shared_folder"] else None
    report["data"] = _read_problem(Path(request["data"]))
    report["wandb"] = _wandb_problem() if request["wandb"] else None
    for name, folder in {"tmpdir": os.environ.get("SLURM_TMPDIR"), "stage": request["stage"]}.items():
        report[name] = None if folder is None else _disk(os.path.expandvars(folder))
    report["time"] = time.time()  # last, since the line is read at once
    return report


def _imports() -> dict[str, object]:
    versions, errors = {}, {}
    for name in MODULES:
        try:
            importlib.import_module(name)
            versions[name] = _version(name)
        except BaseException as error:  # a library's start may raise anything, SystemExit included
            lines = str(error).strip().splitlines()
            errors[name] = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return {"versions": versions, "errors": errors}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # its package has another name
        return ""


def _gpus() -> dict[str, object]:
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return {"gpus": [torch.cuda.get_device_name(k) for k in range(count)], "cuda": torch.version.cuda}
    except Exception as error:
        return {"gpus": [], "cuda": None, "gpu_error": str(error)}


def _check_shared_folder(folder: Path) -> dict[str, object]:
    """Return whether this node sees the login node's file, and the lead of the file server's clock in seconds."""
    try:
        seen = (folder / "login").exists()
        start_time = time.time()
        (folder / "node").touch()
        return {"seen": seen, "error": None, "server_ahead_s": (folder / "node").stat().st_mtime - start_time}
    except OSError as error:
        return {"seen": False, "error": error.strerror, "server_ahead_s": None}


def _read_problem(folder: Path) -> str | None:
    """Return why the files in ``folder`` cannot be read, None if they can."""
    try:
        for path in folder.iterdir():
            if path.is_file():
                with open(path, "rb") as file:
                    file.read(1)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def _disk(folder: str) -> dict[str, object]:
    try:
        name = Path(folder) / f".runyard-probe-{os.getpid()}"
        name.touch()
        name.unlink()
        return {"path": folder, "free_gb": shutil.disk_usage(folder).free / 1e9, "error": None}
    except OSError as error:
        return {"path": folder, "free_gb": 0, "error": error.strerror}


def _wandb_problem() -> str:
    """Return why this node cannot send to W&B; "" if it can."""
    try:
        from runyard.tracking.wandb.connection import connection_problem

        return connection_problem() or ""
    except Exception as error:  # a library that cannot be imported is reported as such, too
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    print(f"\n{OUTPUT_PREFIX}{json.dumps(probe(json.loads(sys.argv[1])))}", flush=True)
    os._exit(0)  # despite threads that the libraries left running
