"""The schema of a run's configuration: names, types, ranges. Rules across settings are in ``validation``.

The values are in ``configs/``; this module defines what is allowed there. It imports no torch, for login nodes.
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
    """The dataset. ``runyard prepare`` writes it once."""

    name: str = setting("Name of the data set; its prepared files are under root in a folder of this name")
    kind: Literal["cifar10", "cifar100", "imagefolder", "synthetic"] = setting("Kind of source")
    root: str = setting("Folder that holds prepared data sets")
    sources: list[Literal["disk", "torchvision", "npm"]] = setting("Sources to try, in order")
    path: str | None = setting("Archive or folder already on disk, for sources that read one")
    image_size: int = setting("Side of the square image the network sees, px", minimum=8, maximum=1024)
    max_resolution: int | None = setting("Longer side of a stored image at most, px; null: as it is", minimum=8)
    write_mode: Literal["raw", "jpg"] = setting("How a .beton file stores pixels")
    jpeg_quality: int | None = setting("JPEG quality, with write_mode=jpg", minimum=1, maximum=100)
    odd_images: Literal["convert", "refuse"] = setting(
        "Grayscale, CMYK, alpha: convert to RGB, or refuse and name them"
    )
    broken_images: Literal["skip", "refuse"] = setting(
        "Truncated files and files that are not images: skip them, or refuse and name them"
    )
    arrays: bool = setting("Also write plain .npy arrays, which loader=torch and loader=resident read")
    validation_fraction: float = setting(
        "Fraction of the training images held out, stratified by class", minimum=0, exclusive_maximum=1
    )
    split_seed: int = setting("Seed of the held-out split", minimum=0)
    samples: list[int] | None = setting("Training and test images to make, for kind=synthetic")
    num_classes: int | None = setting("Classes to make, for kind=synthetic", minimum=2)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, each a pure function of (seed, epoch, sample)."""

    flip: Literal["none", "random", "alternating"] = setting(
        "Horizontal flip: random with p=0.5 in each epoch, or random in epoch 1 and alternating after it"
    )
    crop_padding_px: int = setting(
        "Pad by this many px on each side, then crop to size at a random position", minimum=0
    )
    crop_fill: Literal["black", "reflect"] = setting("Content of the padding")
    rotation_deg: float = setting("Rotate by a uniform angle in [-x, x] degrees", minimum=0, maximum=180)
    rotation_interpolation: Literal["nearest", "bilinear"] = setting("Interpolation of rotated pixels")
    brightness: float = setting("Factor uniform in [1-x, 1+x]", minimum=0, maximum=1)
    contrast: float = setting("Factor uniform in [1-x, 1+x]", minimum=0, maximum=1)
    saturation: float = setting("Factor uniform in [1-x, 1+x]", minimum=0, maximum=1)
    hue: float = setting("Shift uniform in [-x, x] turns of the color circle", minimum=0, maximum=0.5)
    cutout_px: int = setting("Side of a square filled with the mean color; 0: none", minimum=0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. ``name`` is a file in ``runyard/models``; its ``Options`` class defines the other settings."""

    name: str = setting("File under runyard/models")
    max_parameters: int | None = setting("Refuse a network with more trainable parameters; null: no limit", minimum=1)
    options: dict[str, Any] = field(metadata={"doc": "The network's own settings, written next to name", "rest": True})


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss: cross entropy with label smoothing, mixup and cutmix."""

    label_smoothing: float = setting(
        "Fraction of the target that is spread over all classes", minimum=0, exclusive_maximum=1
    )
    mixup_alpha: float = setting("Beta parameter of mixup; 0: none", minimum=0)
    cutmix_alpha: float = setting(
        "Beta parameter of cutmix; 0: none. With both, each step draws one of the two", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer."""

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
    peak_fraction: float | None = setting(
        "Position of the peak of one_cycle, as a fraction of training", exclusive_minimum=0, exclusive_maximum=1
    )
    final_lr_fraction: float = setting(
        "Learning rate at the end of a descent, as a fraction of the peak", minimum=0, maximum=1
    )
    warmup_epochs: float = setting("Epochs of linear rise from 0 at the start, before the curve", minimum=0)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which of them are kept."""

    every_s: float | None = setting("Save after this many seconds; null: not by time", exclusive_minimum=0)
    every_epochs: int | None = setting("Save at the end of every Nth epoch; null: only of the last", minimum=1)
    keep_last: int = setting("Number of newest checkpoints to keep", minimum=1)
    keep_best: bool = setting("Also keep the checkpoint with the best top-1 (on validation if there is one, else test)")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Weights & Biases, from rank 0. The journal metrics.jsonl is always written."""

    mode: Literal["offline", "online", "auto", "none"] = setting(
        "auto: online if there is a key and the server can be reached, else offline"
    )
    project: str = setting("W&B project")
    entity: str | None = setting("W&B user or team; null: the key's own")
    group: str | None = setting("W&B group; null: the experiment's name")
    tags: list[str] = setting("W&B tags")
    artifacts: bool = setting("Upload the last and the best checkpoint to W&B when the run is finished")
    all_nodes: bool = setting(
        "Also measure CPU, memory and GPUs of every node in each epoch; W&B itself measures only the node of rank 0"
    )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where and how the tasks of the run are started."""

    name: str = setting("Name of the cluster profile")
    launcher: Literal["local", "slurm"] = setting("Start processes on this machine, or SLURM jobs")
    nodes: int = setting("Number of nodes", minimum=1)
    tasks_per_node: int | None = setting(
        "Processes per node; null: one per GPU, or without a GPU 2 on this machine and 1 on SLURM", minimum=1
    )
    gpus_per_node: int | None = setting("GPUs per node; null: all of this machine, none on SLURM", minimum=0)
    cpus_per_task: int | None = setting("CPUs per process; null: the cluster's default", minimum=1)
    mem_gb: int | None = setting("Memory per node, GB; null: the cluster's default", minimum=1)
    timeout_min: int = setting("Time limit, min", minimum=2, maximum=525_600)
    signal_delay_s: int = setting("Seconds before the time limit at which the run saves and stops", minimum=10)
    account: str | None = setting("Account to charge")
    partition: str | None = setting("Partition; null: the cluster's default")
    qos: str | None = setting("Quality of service")
    constraint: str | None = setting("Features that nodes must have, such as h200|l40s")
    gres: str | None = setting("GPUs of a kind, such as gpu:rtx8000:2, on clusters that need it; else gpus_per_node")
    comment: str | None = setting("Comment; some clusters read requests from it")
    exclude: str | None = setting("Nodes not to be used, such as node[1-3,7]")
    nodelist: str | None = setting("Nodes to be used, such as node[1-3,7]")
    mail_user: str | None = setting("Address for mail from SLURM")
    mail_type: str | None = setting("When SLURM sends mail, such as END,FAIL")
    requeue: bool = setting("Requeue automatically after a time limit, a preemption, a crash or a node failure")
    array_parallelism: int = setting("Points of a sweep that run at the same time", minimum=1)
    python: str | None = setting("Program that starts Python in a job; null: slurm/python.sh of this checkout")
    env_setup: list[str] = setting("Shell commands run in the job before Python, such as [module load cuda]")
    stage_data: str | None = setting(
        "Folder on each node's own disk to copy the data to first, such as $SLURM_TMPDIR; null: do not copy it"
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete configuration. Submission writes it into the run's directory; jobs only read that file."""

    name: str = setting("Name of the experiment, part of the run's id")
    seed: int = setting("Seed of all randomness", minimum=0, exclusive_maximum=2**63)
    runs_dir: str = setting("Folder that holds run directories")
    runs_group_readable: bool = setting(
        "Let the group read run directories; else only this user can, whatever the umask",
        legacy_default=False,
    )
    epochs: int = setting("Passes over the training images", minimum=1)
    batch_size: int = setting("Global batch size: images per optimizer step over all ranks", minimum=1)
    accumulate: int = setting("Micro-batches per optimizer step on each rank", minimum=1)
    eval_batch_size: int = setting("Images per rank and evaluation step", minimum=1, maximum=1_000_000)
    evaluate_every_epochs: int = setting("Evaluate after every Nth epoch, and after the last", minimum=1)
    loader: Literal["ffcv", "torch", "resident"] = setting(
        "Reader of training images; resident keeps the data set on the device"
    )
    workers: int | None = setting(
        "Loader threads or processes per rank; null: the CPUs that this task may use, minus one",
        minimum=1,
        maximum=1024,
    )
    precision: Literal["bf16", "fp16", "fp32"] = setting("Autocast type; fp16 adds a gradient scaler and needs a GPU")
    channels_last: bool = setting("Memory format of images and weights")
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = setting(
        "Mode of torch.compile for the network"
    )
    sync_batch_norm: bool = setting(
        "Batch norm over the global batch, not over each rank's part: the result then does not depend on the "
        "number of ranks, except for rounding",
        legacy_default=False,
    )
    deterministic: bool = setting(
        "Use only deterministic kernels, or fail: a resumed run on GPUs then gives the same bits, but more slowly",
        legacy_default=False,
    )
    report: bool = setting(
        "Write the run's report at its end, which takes rank 0 some seconds; `runyard report` can write it at any time",
        legacy_default=True,
    )
    ema_decay: float | None = setting(
        "Decay per step of an average of the weights, which is evaluated instead of them; null: none",
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
    """Return a checked ``Config``.

    Raises:
        UserError: an unknown or missing setting, a wrong type, a number out of range, or settings that conflict.
    """
    config = read_dataclass(Config, values)
    check_rules(config)
    return config
