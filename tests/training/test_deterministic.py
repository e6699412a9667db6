"""``deterministic=true`` takes kernels that give the same bits each time, or says which layer has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from runyard.errors import UserError
from runyard.models.starter import Starter
from runyard.runs.run import Run
from runyard.training.trainer import Outcome, train


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)


def scrambled(forward: Callable[[Starter, Tensor], Tensor]) -> Callable[[Starter, Tensor], Tensor]:
    """A network with a kernel of which torch has no deterministic kind, on a CPU either."""

    def forward_with_put(self: Starter, x: Tensor) -> Tensor:
        x.detach().put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return forward(self, x)

    return forward_with_put


def test_a_run_of_deterministic_kernels_alone_trains(make_run: Callable[..., Run]) -> None:
    assert train(make_run("deterministic=true", "epochs=1")) is Outcome.FINISHED
    assert torch.are_deterministic_algorithms_enabled()


def test_a_kernel_that_is_not_is_refused_by_name_before_the_first_step(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Starter, "forward", scrambled(Starter.forward))
    run = make_run("deterministic=true", "epochs=1")
    with pytest.raises(UserError, match=r"^deterministic=true: put_ .*; set deterministic=false"):
        train(run)
    torch.use_deterministic_algorithms(False)
    assert train(make_run("epochs=1")) is Outcome.FINISHED, "the control: without the setting it trains"
