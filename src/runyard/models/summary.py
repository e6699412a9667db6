"""A network's summary: layers, output shapes, parameters, multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from runyard.models import trainable_parameters


def summarize(network: nn.Module, image_size: int) -> dict[str, Any]:
    """Return the totals, and a row per layer with weights in the order they run, as plain values for JSON.

    Counts are per image. Multiply-adds are those of convolutions and matrix products, counted while torch runs them on
    one empty image of ``image_size`` px. Training counts as three forward passes, and a multiply-add as two FLOP.
    """
    rows: dict[str, dict[str, Any]] = {}
    flops_before: dict[str, int] = {}
    counter = FlopCounterMode(display=False)

    def enter(name: str) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, inputs: object) -> None:
            flops_before[name] = counter.get_total_flops()

        return hook

    def leave(name: str) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            output = output if isinstance(output, Tensor) else output[0]
            parameters = sum(p.numel() for p in module.parameters())
            row = rows.setdefault(
                name,
                {
                    "name": name,
                    "kind": type(module).__name__,
                    "output": list(output.shape[1:]),
                    "parameters": parameters,
                    "multiply_adds": 0,
                },
            )
            row["multiply_adds"] += (counter.get_total_flops() - flops_before[name]) // 2

        return hook

    candidates = [(name, m) for name, m in network.named_modules() if _is_layer(m)]
    hooks = [m.register_forward_pre_hook(enter(name)) for name, m in candidates]
    hooks += [m.register_forward_hook(leave(name)) for name, m in candidates]
    training, attention = network.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused attention layer hides its products from the counter
    try:
        with torch.no_grad(), counter:
            network.eval()(torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device))
    finally:
        network.train(training)
        torch.backends.mha.set_fastpath_enabled(attention)
        for hook in hooks:
            hook.remove()
    total, parameters = counter.get_total_flops() // 2, sum(p.numel() for p in network.parameters())
    layers = list(rows.values())
    outside_layers = {
        key: network_total - sum(row[key] for row in layers)
        for key, network_total in (("parameters", parameters), ("multiply_adds", total))
    }
    if any(outside_layers.values()):  # position embeddings, and attention that is called as a function
        layers.append({"name": "(outside layers)", "kind": "", "output": [], **outside_layers})
    return {
        "layers": layers,
        "parameters": parameters,
        "trainable_parameters": trainable_parameters(network),
        "multiply_adds": total,
        "train_gflop": 6 * total / 1e9,
    }


def _is_layer(module: nn.Module) -> bool:
    """Return whether it has weights and is not made of smaller layers; attention calls its own as functions."""
    is_leaf = isinstance(module, nn.MultiheadAttention) or not any(True for _ in module.children())
    return is_leaf and any(True for _ in module.parameters())


def summary_table(summary: dict[str, Any], title: str) -> Table:
    """Return the summary as a table for a terminal."""
    table = Table(title=title, show_footer=True)
    table.add_column("layer", footer="total")
    table.add_column("kind", footer=f"{summary['train_gflop']:.2f} GFLOP per image to train")
    table.add_column("output", justify="right")
    parameters = f"{summary['parameters']:,}"
    if summary["trainable_parameters"] != summary["parameters"]:
        parameters += f" ({summary['trainable_parameters']:,} trained)"
    table.add_column("parameters", justify="right", footer=parameters)
    table.add_column("multiply-adds", justify="right", footer=f"{summary['multiply_adds'] / 1e9:.2f} G")
    for row in summary["layers"]:
        shape = " x ".join(map(str, row["output"]))
        multiply_adds = f"{row['multiply_adds']:,}" if row["multiply_adds"] else ""
        table.add_row(row["name"], row["kind"], shape, f"{row['parameters']:,}", multiply_adds)
    return table
