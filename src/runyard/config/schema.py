"""The schema of a run's configuration: names, types, ranges. Rules across settings stand in ``rules.py``.

Values live in ``configs/``; this file owns what may be written there. It imports no torch: a login node can afford it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runyard.config.fields import config_to_dict, read_dataclass, setting, setting_names, unknown_name_message
from runyard.config.validation import check_rules, check_world_size

__all__ = [
    "Config",
    "check_rules",
    "check_world_size",
    "config_from_dict",
    "config_to_dict",
    "read_dataclass",
    "setting",
    "setting_names",
    "unknown_name_message",
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from. Prepared once by ``runyard prepare``."""

    name: str = setting("Name of the data set; its prepared files lie under root in a folder of this name")
    kind: Literal["cifar10", "cifar100", "imagefolder", "synthetic"] = setting("What the source looks like")
    root: str = setting("Folder that holds prepared data sets")
    sources: list[Literal["disk", "torchvision", "npm"]] = setting("Where to look for the source, in order")
    path: str | None = setting("Archive or folder already on disk, for sources that read one")
    image_size: int = setting("Side of the square image the network sees, px", minimum=8, maximum=1024)
    max_resolution: int | None = setting("Longer side of a stored image at most, px; null: as it is", minimum=8)
    write_mode: Literal["raw", "jpg"] = setting("How a beton stores pixels")
    jpeg_quality: int | None = setting("JPEG quality, with write_mode=jpg", minimum=1, maximum=100)
    odd_images: Literal["convert", "refuse"] = setting("Grayscale, CMYK, alpha: convert to RGB, or refuse by name")
    broken_images: Literal["skip", "refuse"] = setting(
        "Truncated files and files that are no image: leave out, or refuse by name"
    )
    arrays: bool = setting("Also write plain .npy arrays, which loader=torch and loader=resident read")
    validation_fraction: float = setting(
        "Part of the training images held out, stratified by class", minimum=0, exclusive_maximum=1
    )
    split_seed: int = setting("Seed of the held-out split", minimum=0)
    samples: list[int] | None = setting("Training and test images to make, for kind=synthetic")
    num_classes: int | None = setting("Classes to make, for kind=synthetic", minimum=2)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, each a pure function of (seed, epoch, sample)."""

    flip: Literal["none", "random", "alternating"] = setting(
        "Horizontal flip: random p=0.5 each epoch, or random in epoch 1 and alternating after"
    )
    crop_padding_px: int = setting("Pad by this many px on each side, crop back to size at a random place", minimum=0)
    crop_fill: Literal["black", "reflect"] = setting("What the padding holds")
    rotation_deg: float = setting("Rotate by a uniform angle in [-x, x] degrees", minimum=0, maximum=180)
    rotation_interpolation: Literal["nearest", "bilinear"] = setting("How a rotated pixel is read")
    brightness: float = setting("Factor uniform in [1-x, 1+x]", minimum=0, maximum=1)
    contrast: float = setting("Factor uniform in [1-x, 1+x]", minimum=0, maximum=1)
    saturation: float = setting("Factor uniform in [1-x, 1+x]", minimum=0, maximum=1)
    hue: float = setting("Shift uniform in [-x, x] turns of the colour circle", minimum=0, maximum=0.5)
    cutout_px: int = setting("Side of a square filled with the mean colour; 0: none", minimum=0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network. ``name`` is a file in ``runyard/models``, whose ``Options`` says what else may stand here."""

    name: str = setting("File under runyard/models")
    max_parameters: int | None = setting("Refuse a network with more trainable parameters; null: no limit", minimum=1)
    options: dict[str, Any] = field(metadata={"doc": "The network's own settings, written beside name", "rest": True})


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross entropy and what is mixed into it."""

    label_smoothing: float = setting("Share of the target spread over all classes", minimum=0, exclusive_maximum=1)
    mixup_alpha: float = setting("Beta parameter of mixup; 0: none", minimum=0)
    cutmix_alpha: float = setting(
        "Beta parameter of cutmix; 0: none. With both, each step draws one of the two", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser."""

    name: Literal["adamw", "sgd"] = setting("AdamW, or SGD with Nesterov momentum")
    lr: float = setting("Peak learning rate", exclusive_minimum=0)
    weight_decay: float = setting("Decoupled for adamw, added to the gradient for sgd", minimum=0)
    decay_norms_and_biases: bool = setting("Whether weight decay also acts on norms and biases")
    betas: list[float] | None = setting("The two decay rates of adamw; null for sgd")
    momentum: float | None = setting("Nesterov momentum of sgd; null for adamw", minimum=0, exclusive_maximum=1)
    grad_clip_norm: float | None = setting("Clip the gradient's norm to this; null: no clipping", exclusive_minimum=0)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate as a pure function of the step."""

    name: Literal["cosine_restarts", "cosine", "one_cycle", "constant"] = setting("Shape of the curve")
    period_epochs: float | None = setting("Length of a cycle, for cosine_restarts", exclusive_minimum=0)
    peak_fraction: float | None = setting("Where in training one_cycle peaks", exclusive_minimum=0, exclusive_maximum=1)
    final_lr_fraction: float = setting(
        "Learning rate at the end of a descent, as a part of the peak", minimum=0, maximum=1
    )
    warmup_epochs: float = setting("Linear rise from 0 at the start, before the curve", minimum=0)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When state is saved, and how much of it is kept."""

    every_s: float | None = setting("Save when this many seconds have passed; null: not by time", exclusive_minimum=0)
    every_epochs: int | None = setting("Save at the end of every so many epochs; null: only at the last", minimum=1)
    keep_last: int = setting("Newest checkpoints kept", minimum=1)
    keep_best: bool = setting("Also keep the checkpoint with the best top-1 (on validation if there is one, else test)")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Weights & Biases, from rank 0. The journal metrics.jsonl is always written."""

    mode: Literal["offline", "online", "auto", "none"] = setting(
        "auto: online if a key and the server are there, else offline"
    )
    project: str = setting("W&B project")
    entity: str | None = setting("W&B user or team; null: the key's own")
    group: str | None = setting("W&B group; null: the experiment's name")
    tags: list[str] = setting("W&B tags")
    artifacts: bool = setting("Send the last and the best checkpoint to W&B when the run is finished")
    all_nodes: bool = setting(
        "Also measure CPU, memory and GPUs of every node, each epoch: W&B by itself sees rank 0's alone"
    )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the run's tasks are started."""

    name: str = setting("Profile")
    launcher: Literal["local", "slurm"] = setting("submitit's executor: processes on this machine, or SLURM jobs")
    nodes: int = setting("Machines", minimum=1)
    tasks_per_node: int | None = setting(
        "Processes on a machine; null: one per GPU, or without a GPU 2 here and 1 on SLURM", minimum=1
    )
    gpus_per_node: int | None = setting("GPUs on a machine; null: all there are here, none on SLURM", minimum=0)
    cpus_per_task: int | None = setting("CPUs of each process; null: the cluster's default", minimum=1)
    mem_gb: int | None = setting("Memory on each machine, GB; null: the cluster's default", minimum=1)
    timeout_min: int = setting("Time limit, min", minimum=2, maximum=525_600)
    signal_delay_s: int = setting("Save and stop this long before the time limit, s", minimum=10)
    account: str | None = setting("Who is charged")
    partition: str | None = setting("Partition; null: the cluster's own choice")
    qos: str | None = setting("Quality of service")
    constraint: str | None = setting("Features that nodes must have, as h200|l40s")
    gres: str | None = setting("GPUs of a kind, as gpu:rtx8000:2, where the cluster wants them so; else gpus_per_node")
    comment: str | None = setting("Comment; some clusters read wishes from it")
    exclude: str | None = setting("Nodes not to be used, as node[1-3,7]")
    nodelist: str | None = setting("Nodes to be used, as node[1-3,7]")
    mail_user: str | None = setting("Address for SLURM's mails")
    mail_type: str | None = setting("When SLURM sends mail, as END,FAIL")
    requeue: bool = setting("Go on by itself after a time limit, a preemption, a crash or a dead node")
    array_parallelism: int = setting("Points of a sweep that run at the same time", minimum=1)
    python: str | None = setting("Program that starts Python in a job; null: slurm/python.sh of this checkout")
    env_setup: list[str] = setting("Shell commands run in the job before Python, as [module load cuda]")
    stage_data: str | None = setting(
        "Folder on each node's own disk that the data is copied to first, as $SLURM_TMPDIR; null: read where it is"
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Frozen into the run's directory at submission; jobs read that file and compose nothing."""

    name: str = setting("Name of the experiment, part of the run's id")
    seed: int = setting("Seed of everything random", minimum=0, exclusive_maximum=2**63)
    runs_dir: str = setting("Folder that holds run directories")
    runs_group_readable: bool = setting(
        "Let the group read run directories, which are otherwise this user's alone, whatever the umask",
        legacy_default=False,
    )
    epochs: int = setting("Passes over the training images", minimum=1)
    batch_size: int = setting("Global batch: images per optimiser step over all ranks", minimum=1)
    accumulate: int = setting("Micro-batches per optimiser step on each rank", minimum=1)
    eval_batch_size: int = setting("Images per rank and evaluation step", minimum=1, maximum=1_000_000)
    evaluate_every_epochs: int = setting("Evaluate after every so many epochs, and after the last", minimum=1)
    loader: Literal["ffcv", "torch", "resident"] = setting(
        "Reader of training images; resident holds the set on the device"
    )
    workers: int | None = setting(
        "Loader threads or processes per rank; null: CPUs this task may use, less one", minimum=1, maximum=1024
    )
    precision: Literal["bf16", "fp16", "fp32"] = setting("Autocast type; fp16 adds a gradient scaler and needs a GPU")
    channels_last: bool = setting("Memory format of images and weights")
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = setting(
        "Mode of torch.compile for the network"
    )
    sync_batch_norm: bool = setting(
        "Batch norm over the global batch, not over each rank's part: what is learned then does not depend on the "
        "number of ranks, but for rounding",
        legacy_default=False,
    )
    deterministic: bool = setting(
        "Use only kernels that give the same bits each time, or refuse: GPUs then go on to the same bits, more slowly",
        legacy_default=False,
    )
    report: bool = setting(
        "Write the run's report at its end, which takes rank 0 some seconds; `runyard report` writes it at any time",
        legacy_default=True,
    )
    ema_decay: float | None = setting(
        "Average of the weights, per step; evaluated instead of them. null: none",
        exclusive_minimum=0,
        exclusive_maximum=1,
    )
    data: DataConfig
    augment: AugmentConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig
    cluster: ClusterConfig


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """A checked ``Config``.

    Raises:
        UserError: an unknown or missing setting, a wrong type, a number out of range, or settings at odds.
    """
    config = read_dataclass(Config, values)
    check_rules(config)
    return config
