"""Formats journal rows as lines of text for the log and the terminal."""

from __future__ import annotations

from runyard.runs.journal import Row

STRAGGLER_RATIO = 1.5  # times the median


def format_row(row: Row, epochs: int) -> str | None:
    """Return one line for a row worth showing, else None. ``epochs`` is the run's total number of epochs."""
    match row["event"]:
        case "start":
            action = f"resuming at step {row['step']}" if row["resumed_from"] else "training"
            ranks = f"{row['world_size']} rank{'s' * (row['world_size'] > 1)}"
            return f"{action}: {row['parameters']:,} parameters, {row['precision']}, {ranks} on {row['device_name']}"
        case "epoch":
            top1 = "".join(
                f"{name} {value:.2%}  " for name in ("val", "test") if (value := row[f"{name}_top1"]) is not None
            )
            test = f", {row['test_loss']:.4f} test" if row["test_loss"] is not None else ""
            return (
                f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  {top1}"
                f"loss {row['train_loss']:.4f} train{test}  lr {row['lr']:.1e}  "
                f"{row['images_per_s']:,.0f} images/s, {row['data_wait_pct']:.0f} % waiting for data  "
                f"{format_duration(row['clock_s'])}{f'  {slow}' if (slow := straggler_text(row)) else ''}"
            )
        case "final":
            return (
                f"final test top-1 {row['top1']:.2%} (best {row['top1_best']:.2%} in epoch {row['best_epoch']}), "
                f"trained in {format_duration(row['clock_s'])}"
            )
        case "requeue":
            return f"{row['cause']}: back into the queue, to go on at step {row['step']}"
        case "exclude":
            return f"{row['node']} is left out from now on: {row['why']}"
        case "warning":
            return f"warning: {row['message']}"
    return None


def straggler_text(row: Row) -> str | None:
    """Describe the slowest rank of an ``epoch`` row if it takes ``STRAGGLER_RATIO`` times the median or more."""
    ratio = row.get("slowest_to_median")
    if not isinstance(ratio, (int, float)) or ratio < STRAGGLER_RATIO:
        return None
    return f"rank {row.get('slowest_rank')} on {row.get('slowest_node')} takes {ratio:.1f}x the median rank's time"


def format_duration(seconds: float) -> str:
    """Return seconds as m:ss, or as h:mm:ss from one hour on."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
