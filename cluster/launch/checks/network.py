"""Checks that the run's network can be trained on what each rank gets of a batch."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any

from runyard import known_causes
from runyard.cluster.launch.checks.check import CheckContext
from runyard.config.schema import ModelConfig, config_to_dict, read_dataclass
from runyard.errors import ExitCode, UserError
from runyard.slurm_client import QueryError

TIMEOUT_S = 120.0


def network_trains(context: CheckContext) -> str:
    """Check that the network can normalize what it is trained on, by a step of it on one image.

    With two images or more a batch norm always has values to compare, so only a single one costs the seconds in which
    torch is loaded, in a process of its own.
    """
    config, model = context.config, context.config.model
    ranks = context.tasks_per_node * config.cluster.nodes
    normalized_together = config.batch_size // config.accumulate // (1 if config.sync_batch_norm else ranks)
    if normalized_together > 1:
        return f"{normalized_together} images at once"
    request = {"model": config_to_dict(model), "size": config.data.image_size, "classes": config.data.num_classes or 10}
    message = _failure(json.dumps(request))
    if message is None:
        return "one image at once"
    cause = known_causes.classify(None, message)
    if cause is None or cause.name != known_causes.SINGLE_VALUE:
        raise QueryError(f"the network could not be tried here: {message[:200]}")
    raise UserError(
        f"batch_size={config.batch_size}: each of {ranks} ranks gets one image at once, and model={model.name} "
        "has a batch norm with a single value per channel there",
        f"set batch_size={2 * ranks * config.accumulate} or more, or fewer ranks or micro-batches",
    )


@functools.cache  # the points of a grid mostly have one network
def _failure(request: str) -> str | None:
    """Train the network of the request on one image in another process. Return its last line of error, if any.

    Raises:
        UserError: there is no such network, for images of that size.
    """
    try:
        tried = subprocess.run(
            [sys.executable, "-m", "runyard.cluster.launch.checks.network"],
            input=request, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S:g} s"
    if tried.returncode == ExitCode.USER_ERROR:
        raise UserError(*json.loads(tried.stdout))
    return None if tried.returncode == 0 else (tried.stderr.strip().splitlines() or ["no message"])[-1]


def _train_on_one_image(request: dict[str, Any]) -> None:
    import torch

    from runyard import models

    config = read_dataclass(ModelConfig, request["model"], "model.")
    network = models.build(config, request["classes"], request["size"]).train()
    network(torch.zeros(1, 3, request["size"], request["size"])).sum().backward()


if __name__ == "__main__":
    try:
        _train_on_one_image(json.load(sys.stdin))
    except UserError as error:
        print(json.dumps([error.problem, error.fix]))
        sys.exit(error.exit_code)
