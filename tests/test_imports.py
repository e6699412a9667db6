"""Who may import whom: the rules that keep a login node light and the training program free of the launcher."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "ffcv", "wandb", "numba", "cv2"}

Sources = dict[str, str]  # a module's dotted name -> its text


def sources() -> Sources:
    """Every module of the two packages."""
    found: Sources = {}
    for top, package in ((ROOT / "src", "runyard"), (ROOT, "cluster")):
        for path in sorted((top / package).rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def statements(node: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    """Import statements below ``node``; without ``lazy`` only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for branch in child.orelse:
                yield from statements(branch, lazy)
        elif lazy or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from statements(child, lazy)


def imports(module: str, text: str, *, lazy: bool = True) -> set[str]:
    """Dotted names that ``module`` imports; of ``from a import b`` both a and a.b, since b may be a module."""
    names: set[str] = set()
    for node in statements(ast.parse(text), lazy):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import; the rules are checked on absolute names"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def reached(modules: Sources, *starts: str) -> dict[str, list[str]]:
    """Top-level packages that importing ``starts`` loads, each with the chain of our modules that leads there."""
    packages: dict[str, list[str]] = {}
    chains = {start: [start] for start in starts}
    waiting = list(starts)
    while waiting:
        module = waiting.pop(0)
        for name in sorted(imports(module, modules[module], lazy=False)):
            packages.setdefault(name.partition(".")[0], chains[module])
            parts = name.split(".")
            for ours in (".".join(parts[:i]) for i in range(1, len(parts) + 1)):  # a parent package runs as well
                if ours in modules and ours not in chains:
                    chains[ours] = [*chains[module], ours]
                    waiting.append(ours)
    return packages


def outsiders(modules: Sources, forbidden: set[str], allowed_in: tuple[str, ...]) -> list[str]:
    """Modules outside ``allowed_in`` that import anything of the packages ``forbidden``, at any depth of the file."""
    return [f"{module} imports {name}" for module, text in modules.items()
            for name in sorted({name.partition(".")[0] for name in imports(module, text)} & forbidden)
            if not any(module == a or module.startswith(a + ".") for a in allowed_in)]


def heavy_ways(modules: Sources, package: str) -> list[str]:
    """How importing any module of ``package`` would load something heavy."""
    starts = [m for m in modules if m.split(".")[0] == package]
    return [f"{name}: {' -> '.join(chain)}" for name, chain in reached(modules, *starts).items() if name in HEAVY]


def launchers(modules: Sources) -> list[str]:
    ours = {name: text for name, text in modules.items() if name.startswith("runyard")}
    return outsiders(ours, {"cluster", "submitit", "hydra", "omegaconf"}, ("runyard.verbs",))


def test_the_training_program_imports_no_launcher_outside_its_command_line() -> None:
    assert launchers(sources()) == []


def test_a_launcher_imported_deep_inside_the_training_program_is_found() -> None:
    late = "def late():\n    if True:\n        from cluster import submit\n"
    planted = sources() | {"runyard.training.planted": late}
    assert launchers(planted) == ["runyard.training.planted imports cluster"]


def test_the_login_nodes_package_imports_nothing_heavy_with_its_modules() -> None:
    assert heavy_ways(sources(), "cluster") == []


@pytest.mark.parametrize("planted", ["import torch", "from runyard.far import x", "class A:\n    import torch"])
def test_a_heavy_import_is_found_however_far_from_the_login_nodes_package(planted: str) -> None:
    far = "try:\n    import torch.nn\nexcept ImportError: ..."
    modules = sources() | {"cluster.planted": planted, "runyard.far": far}
    assert heavy_ways(modules, "cluster") != []


def test_a_heavy_import_inside_a_call_or_for_types_alone_is_allowed() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef run():\n    import torch\n"
    assert heavy_ways({"cluster.planted": text}, "cluster") == []


LIGHT = ["runyard.cli", "runyard.config", "runyard.run", "runyard.data.manifest", "runyard.tracking.journal"]


def test_settings_runs_manifests_journals_and_reports_need_no_torch() -> None:
    modules = sources()
    light = [*LIGHT, *(m for m in modules if m.startswith("runyard.report"))]
    assert {name: chain for name, chain in reached(modules, *light).items() if name in HEAVY} == {}


def test_training_can_be_imported_where_only_the_core_libraries_are_installed() -> None:
    optional = {"ffcv", "torchvision", "wandb", "hydra", "omegaconf", "submitit"}
    found = reached(sources(), "runyard.training.loop")
    assert "torch" in found  # the chain is followed at all
    assert {name: chain for name, chain in found.items() if name in optional} == {}


def fresh(imported: str) -> set[str]:
    """Heavy modules that a new Python process holds after importing."""
    code = f"import sys\nimport {imported}\nprint(*(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_login_node_never_loads_torch_ffcv_torchvision_or_wandb() -> None:
    assert fresh("cluster.submit, runyard.cli") == set()


def test_a_heavy_module_in_a_fresh_process_is_seen() -> None:
    assert "numba" in fresh("cluster.submit, numba")


def owners(modules: Sources) -> list[str]:
    return outsiders(modules, {"wandb"}, ("runyard.tracking",)) + outsiders(modules, {"ffcv"}, ("runyard.data",))


def test_only_tracking_imports_wandb_and_only_data_imports_ffcv() -> None:
    assert owners(sources()) == []


def test_a_stray_import_of_wandb_or_ffcv_is_found() -> None:
    planted = {"runyard.training.a": "def f():\n    import wandb", "cluster.b": "from ffcv.loader import Loader",
               "runyard.tracking.c": "import wandb", "runyard.data.d": "import ffcv"}
    assert owners(planted) == ["runyard.training.a imports wandb", "cluster.b imports ffcv"]
