"""The training state: network, optimizer, and everything else that a checkpoint stores."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runyard import models
from runyard.config.schema import Config
from runyard.data.loading.batch import Batch, Normalize
from runyard.data.manifest import Manifest
from runyard.errors import TrainingFailed, UserError
from runyard.models.layers import sync_batch_norm
from runyard.models.layers.dropout import SampleDropout, step_seed
from runyard.ownership import compiler_cache
from runyard.training import optimizer
from runyard.training.checkpoint import State
from runyard.training.distributed.launcher import RankInfo
from runyard.training.ema import Ema
from runyard.training.loss import Loss, mix_batch
from runyard.training.lr_scheduler import learning_rate
from runyard.training.metrics.counters import Counters
from runyard.training.metrics.step_timer import StepTimer

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NO_STEP = 2**62  # a rank flags a non-finite step as NO_STEP - step * world_size - rank: the earliest is the highest


class DivergenceError(TrainingFailed):
    """The loss or a weight is no longer a finite number. The last checkpoint is from before that."""


class TrainState:
    """One rank's copy of the training state. ``step`` counts optimizer steps done, ``epochs_done`` epochs evaluated."""

    def __init__(self, config: Config, manifest: Manifest, rank_info: RankInfo, steps_per_epoch: int) -> None:
        self.config, self.rank_info, self.device = config, rank_info, rank_info.device
        self.steps_per_epoch = steps_per_epoch
        self.step, self.epochs_done, self.clock_s = 0, 0, 0.0
        self.best: dict[str, float] = {}
        torch.manual_seed(config.seed)
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        network = models.build(config.model, len(manifest.classes), manifest.image_size)
        if config.sync_batch_norm:
            network = sync_batch_norm.convert(network, self.device)
        self.dropout = SampleDropout.convert(network)
        self.network = network.to(self.device, memory_format=memory_format)  # type: ignore[call-overload]
        self._parameters = list(self.network.parameters())  # a walk through the modules costs up to 0.1 ms
        self.normalize = Normalize(manifest.mean, manifest.std).to(self.device)
        self.optimizer = optimizer.build(config.optim, self.network)
        self.ema = Ema(self.network, config.ema_decay) if config.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")  # type: ignore[attr-defined]
        self.loss = Loss(config.loss)
        self.counters = Counters(self.device)
        self.timer = StepTimer(self.device)
        compiled = config.compile != "none"
        if compiled and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # the default in /tmp may be another user's
            try:
                folder = compiler_cache(Path(tempfile.gettempdir()), "inductor", torch.__version__)
            except OSError:
                folder = Path(tempfile.mkdtemp(prefix="runyard-inductor-"))
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        self._compiled_network = torch.compile(self.network, mode=config.compile) if compiled else self.network
        self._ddp: DistributedDataParallel | None = None
        self._first_non_finite_step = torch.full((), NO_STEP, dtype=torch.int64, device=self.device)
        self._first_non_finite_step_host = torch.full(
            (), NO_STEP, dtype=torch.int64, pin_memory=self.device.type == "cuda"
        )

    def wrap_ddp(self) -> None:
        """Wrap the network in DDP, after ``init_from_data`` or ``load_state_dict``: all ranks get rank 0's weights."""
        if self.rank_info.world_size > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self._ddp = DistributedDataParallel(self._compiled_network, device_ids=ids, gradient_as_bucket_view=True)
            self.timer.register_hooks(self._ddp)

    def train_step(self, micro_batches: list[Batch]) -> None:
        """Take one optimizer step over this rank's micro-batches. Nothing here waits for the device."""
        lr = learning_rate(self.config, self.step, self.steps_per_epoch)
        optimizer.set_lr(self.optimizer, lr)
        # for layers that draw from torch's generator
        torch.manual_seed(step_seed(self.config.seed, self.step, self.rank_info.rank))
        self.network.train()
        for i, batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            with contextlib.nullcontext() if last or self._ddp is None else self._ddp.no_sync():
                self._micro_step(batch, len(micro_batches))
        self.scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if self.rank_info.rank == 0:  # the gradient is the same on all ranks, and rank 0 saves the counters
            self.counters.add_norm(grad_norm)
        if self.config.optim.grad_clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.config.optim.grad_clip_norm, grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.step)
        self._first_non_finite_step_host.copy_(self._first_non_finite_step, non_blocking=True)
        self.step += 1

    def _micro_step(self, batch: Batch, count: int) -> None:
        if self.dropout is not None:
            self.dropout.set_step(self.config.seed, self.step, batch.indices)
        images, targets = mix_batch(
            self.normalize(batch.images), batch.labels, self.config.loss, self.config.seed, self.step
        )
        with self._autocast():
            logits = (self._ddp or self._compiled_network)(self._to_memory_format(images))
        loss = self.loss(logits, targets)
        self.scaler.scale(loss / count).backward()
        with torch.no_grad():
            non_finite_step = torch.where(loss.isfinite(), NO_STEP, self.step)
            torch.minimum(self._first_non_finite_step, non_finite_step, out=self._first_non_finite_step)
            self.counters.add(
                loss * len(batch.labels), (logits.argmax(1) == targets.majority_labels).sum(), len(batch.labels)
            )

    def logits(self, images: Tensor) -> Tensor:
        """Return logits [b, classes] of uint8 images [b, S, S, 3], in evaluation mode."""
        self.network.eval()
        with self._autocast():
            return self._compiled_network(self._to_memory_format(self.normalize(images)))  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Within the block every rank has the weights to evaluate: rank 0's buffers, and averages if they are kept."""
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            if dist.is_initialized():
                for buffer in self.network.buffers():
                    dist.broadcast(buffer, 0)
            yield

    def non_finite_flag(self, *, exact: bool = False) -> int:
        """Return 0, or the first step with a non-finite loss as a flag. Unless ``exact``, a GPU's flag may be late."""
        step = int(self._first_non_finite_step if exact else self._first_non_finite_step_host)
        return 0 if step == NO_STEP else NO_STEP - step * self.rank_info.world_size - self.rank_info.rank

    def divergence_error(self, flag: int) -> DivergenceError:
        step, rank = divmod(NO_STEP - flag, self.rank_info.world_size)
        return DivergenceError(
            f"the loss is not a finite number at step {step + 1} "
            f"(epoch {step // self.steps_per_epoch + 1}) on rank {rank}: "
            "lower optim.lr, or set optim.grad_clip_norm, or schedule.warmup_epochs"
        )

    def state_dict(self) -> State:
        """Return all that a resume needs. Everything random is a function of the step: no generator's state is needed.

        Raises:
            DivergenceError: a weight is not a finite number.
        """
        if not all(bool(p.isfinite().all()) for p in self.network.parameters()):
            raise DivergenceError(
                f"a weight is not a finite number after step {self.step}: lower optim.lr, or set optim.grad_clip_norm"
            )
        return {
            "step": self.step,
            "epochs_done": self.epochs_done,
            "clock_s": self.clock_s,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "counters": self.counters.state(),
            "world_size": self.rank_info.world_size,
        }

    def load_state_dict(self, state: State) -> None:
        """Load ``state``. The counters of the unfinished epoch go to rank 0 alone, which saved those of all ranks."""
        self.step, self.epochs_done = state["step"], state["epochs_done"]
        self.clock_s, self.best = state["clock_s"], state["best"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        if self.rank_info.rank == 0:
            self.counters.restore(state["counters"])

    @property
    def parameters(self) -> int:
        return models.trainable_parameters(self.network)

    def warm_up(self, image_size: int) -> None:
        """Run a forward and a backward pass over dummy images before the clock starts, if anything depends on it.

        The state does not change.

        DistributedDataParallel rebuilds its gradient buckets after the first backward pass of a process, and the order
        in which a ring sums over the ranks depends on an element's position in its bucket. This is the first backward
        pass, so that every training step of every start sums in the same order. With ``compile``, both modes are
        compiled.

        Raises:
            UserError: with ``deterministic``, the network needs a kernel that has no deterministic version.
        """
        compiles, world_size = self.config.compile != "none", self.rank_info.world_size
        if not compiles and world_size == 1 and not self.config.deterministic:
            return
        count = self.config.batch_size // world_size // self.config.accumulate if compiles else 2
        images = torch.zeros((count, image_size, image_size, 3), dtype=torch.uint8, device=self.device)
        labels = torch.zeros(count, dtype=torch.int64, device=self.device)
        saved_state = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.network.train()
        if self.dropout is not None:
            self.dropout.set_step(self.config.seed, 0, labels)
        try:
            with self._autocast():
                logits = (self._ddp or self._compiled_network)(self._to_memory_format(self.normalize(images)))
            self.loss(logits, labels).backward()
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            raise UserError(f"deterministic=true: {str(error).partition(',')[0]}", "set deterministic=false") from error
        self.optimizer.zero_grad(set_to_none=True)
        if compiles:
            with torch.no_grad():
                self.logits(images[:1].expand(self.config.eval_batch_size, -1, -1, -1))
        self.network.load_state_dict(saved_state)

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST[self.config.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def _to_memory_format(self, images: Tensor) -> Tensor:
        return images if self.config.channels_last else images.contiguous()
