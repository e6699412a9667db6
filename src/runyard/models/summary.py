"""What a network consists of and costs: layers, output shapes, parameters, multiply-adds."""

from __future__ import annotations

from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from runyard.models import trainable_parameters


def summarize(network: nn.Module, image_size: int) -> dict[str, Any]:
    """Totals, and a row per layer with weights in the order they run; counts are per image. Plain values, fit for JSON.

    Multiply-adds are those of convolutions and matrix products, counted as torch runs them on one empty image of
    ``image_size``. Training is taken as three forward passes, and a multiply-add as two FLOP.
    """
    rows: dict[str, dict[str, Any]] = {}
    before: dict[str, int] = {}
    counter = FlopCounterMode(display=False)

    def enter(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            before[name] = counter.get_total_flops()

        return hook

    def leave(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
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
            row["multiply_adds"] += (counter.get_total_flops() - before[name]) // 2

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
    rest = {
        key: whole - sum(row[key] for row in layers)
        for key, whole in (("parameters", parameters), ("multiply_adds", total))
    }
    if any(rest.values()):  # weights and products that no layer owns, such as position codes and attention by function
        layers.append({"name": "(outside layers)", "kind": "", "output": [], **rest})
    return {
        "layers": layers,
        "parameters": parameters,
        "trainable_parameters": trainable_parameters(network),
        "multiply_adds": total,
        "train_gflop": 6 * total / 1e9,
    }


def _is_layer(module: nn.Module) -> bool:
    """Owns weights and is not made of smaller layers (attention calls its inner ones by function)."""
    whole = isinstance(module, nn.MultiheadAttention) or not any(True for _ in module.children())
    return whole and any(True for _ in module.parameters())


def summary_table(summary: dict[str, Any], title: str) -> Table:
    """The summary for a terminal."""
    out = Table(title=title, show_footer=True)
    out.add_column("layer", footer="total")
    out.add_column("kind", footer=f"{summary['train_gflop']:.2f} GFLOP per image to train")
    out.add_column("output", justify="right")
    parameters = f"{summary['parameters']:,}"
    if summary["trainable_parameters"] != summary["parameters"]:
        parameters += f" ({summary['trainable_parameters']:,} trained)"
    out.add_column("parameters", justify="right", footer=parameters)
    out.add_column("multiply-adds", justify="right", footer=f"{summary['multiply_adds'] / 1e9:.2f} G")
    for row in summary["layers"]:
        shape = " x ".join(map(str, row["output"]))
        multiply_adds = f"{row['multiply_adds']:,}" if row["multiply_adds"] else ""
        out.add_row(row["name"], row["kind"], shape, f"{row['parameters']:,}", multiply_adds)
    return out
