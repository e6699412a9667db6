"""Checks that the run's network can be trained on what each rank gets of a batch."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any

from runyard import known_causes
from runyard.cluster.launch.checks.check import CheckContext
from runyard.config.schema import Config, ModelConfig, config_to_dict, read_dataclass
from runyard.errors import ExitCode, UserError
from runyard.slurm_client import QueryError

TIMEOUT_S = 120.0


def network_trains(context: CheckContext) -> str:
    """Check that the network can normalize what it is trained on, by a step of it on one image.

    With two images or more a batch norm always has values to compare, so only a single one costs the seconds in which
    torch is loaded, in a process of its own.
    """
    config, ranks = context.config, context.tasks_per_node * context.config.cluster.nodes
    normalized_together = config.batch_size // config.accumulate // (1 if config.sync_batch_norm else ranks)
    if normalized_together > 1:
        return f"{normalized_together} images at once"
    message = _failure(_request(config, images=1))
    if message is None:
        return "one image at once"
    cause = known_causes.classify(None, message)
    if cause is None or cause.name != known_causes.SINGLE_VALUE:
        raise QueryError(f"the network could not be tried here: {message[:200]}")
    raise UserError(
        f"batch_size={config.batch_size}: each of {ranks} ranks gets one image at once, and model={config.model.name} "
        "has a batch norm with a single value per channel there",
        f"set batch_size={2 * ranks * config.accumulate} or more, or fewer ranks or micro-batches",
    )


def network_is_there(context: CheckContext) -> str:
    """Check, in the seconds that ``submit`` does not have, that there is such a network for images of this size."""
    if (message := _failure(_request(context.config, images=2))) is not None:
        raise QueryError(f"the network could not be tried here: {message[:200]}")
    return f"a step of model={context.config.model.name}"


def _request(config: Config, images: int) -> str:
    network = {"model": config_to_dict(config.model), "classes": config.data.num_classes or 10}
    return json.dumps(network | {"size": config.data.image_size, "images": images})


@functools.cache  # the points of a grid mostly have one network
def _failure(request: str) -> str | None:
    """Train the network of the request on its images in another process. Return its last line of error, if any.

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


def _train(request: dict[str, Any]) -> None:
    import torch

    from runyard import models

    config = read_dataclass(ModelConfig, request["model"], "model.")
    network = models.build(config, request["classes"], request["size"]).train()
    network(torch.zeros(request["images"], 3, request["size"], request["size"])).sum().backward()


if __name__ == "__main__":
    try:
        _train(json.load(sys.stdin))
    except UserError as error:
        print(json.dumps([error.problem, error.fix]))
        sys.exit(error.exit_code)
