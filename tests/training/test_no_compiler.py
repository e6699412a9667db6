"""A process that compiles nothing starts without torch's compiler, learns the same bits, and has it when it asks."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.settings import PATIENCE_S

LEARNS = """
import hashlib, json, sys, torch, torch.distributed as dist
from runyard.training.no_compiler import defer_compiler_import
if sys.argv[1] == "keep out":
    defer_compiler_import()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
torch.manual_seed(0)
network = torch.nn.Linear(8, 4)
for optimizer in (torch.optim.AdamW(network.parameters()),
                  torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)):
    wrapped = torch.nn.parallel.DistributedDataParallel(network)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(torch.randn(16, 8)).square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
dist.destroy_process_group()
said = {"compiler": "torch._dynamo.eval_frame" in sys.modules,
        "weights": hashlib.sha256(network.weight.detach().numpy().tobytes()).hexdigest()}
compiled = torch.compile(network, backend="eager")
here = torch.randn(2, 8)
said["compiles"] = bool(torch.equal(compiled(here), network(here))) and "torch._dynamo.eval_frame" in sys.modules
import torch._dynamo.utils
said["whole"] = hasattr(torch._dynamo.utils, "counters") and hasattr(torch._dynamo, "explain")
print(json.dumps(said))
"""


def learns(way: str) -> dict[str, Any]:
    command = [sys.executable, "-c", LEARNS, way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.slow
def test_without_torchs_compiler_the_same_is_learned_and_whoever_asks_for_it_still_has_it() -> None:
    without, control = learns("keep out"), learns("as torch has it")
    assert (without.pop("compiler"), control.pop("compiler")) == (False, True)
    assert without == control
    assert without["compiles"]
    assert without["whole"]
