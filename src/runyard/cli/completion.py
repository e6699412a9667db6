"""Tab completion of commands, config groups, settings and their values, read from the configuration itself."""

from __future__ import annotations

import typing

from runyard.cli.commands import COMMANDS
from runyard.cli.parser import positionals
from runyard.config import schema
from runyard.config.compose import config_groups, network_settings
from runyard.runs.store import run_dirs

BASH = """_runyard() {
  local IFS=$'\\n' cur line=${COMP_LINE:0:COMP_POINT}
  cur=${line##* }
  COMPREPLY=($(runyard completion bash --line "$line"))
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
  [[ $cur == *=* ]] && COMPREPLY=("${COMPREPLY[@]#*=}")
}
complete -o default -F _runyard runyard
"""


def script(shell: str) -> str:
    """Return the text to ``eval`` in the start-up file of ``shell``, bash or zsh."""
    return BASH if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{BASH}"


def completions(line: str) -> list[str]:
    """Return the completions of the last word of ``line``, a command line that begins with ``runyard``.

    A line that ends in a space has an empty last word: all that may come next is returned.
    """
    _, *tokens = line.split(" ")
    current = tokens[-1] if tokens else ""
    if len(tokens) < 2:
        return [command for command in COMMANDS if command.startswith(current)]
    if tokens[0] == "completion":
        return [shell for shell in ("bash", "zsh") if shell.startswith(current)]
    if tokens[0] == "slurm":
        actions = ("up", "down", "shell", "status") if len(tokens) == 2 else ()
        return [action for action in actions if action.startswith(current)]
    if tokens[0] == "profile":
        return ["new"] if len(tokens) == 2 and "new".startswith(current) else []
    if tokens[0] not in COMMANDS:
        return []
    argument_names = positionals(tokens[0])
    if argument_names & {"run", "runs"}:
        several = "runs" in argument_names  # after a single RUN the shell completes file names
        references = ["@last", *_run_ids()] if len(tokens) == 2 or several else []
        return [reference for reference in references if reference.startswith(current)]
    name, separator, value = current.partition("=")
    options = config_groups() | {"experiment": ["auto", *config_groups()["experiment"]]}
    if separator:
        return [f"{name}={o}" for o in options.get(name, _values(name)) if o.startswith(value)]
    leaves = list(dict.fromkeys([*schema.SETTINGS, *network_settings()]))
    if tokens[0] == "settings":
        return [n for n in leaves if n.startswith(current)]
    return [f"{n}=" for n in [*options, *leaves] if n.startswith(current)]


def _values(name: str) -> list[str]:
    cls: type = schema.Config
    *path, leaf = name.split(".")
    for part in path:
        cls = typing.get_type_hints(cls).get(part, object)
    hint = typing.get_type_hints(cls).get(leaf)
    if typing.get_origin(hint) is typing.Literal:
        return [str(v) for v in typing.get_args(hint)]
    return ["true", "false"] if hint is bool else []


def _run_ids() -> list[str]:
    return [path.name for path in reversed(run_dirs("runs"))][:50]
