"""Secrets of the environment, which no configuration may hold: it is written into the run, the script and the logs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from runyard.errors import UserError

SECRET_WORDS = "KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL"  # as words of their own: TOKENIZERS_PARALLELISM is none
SECRET_NAME = re.compile(rf"(^|_)(API|ACCESS|PRIVATE)?({SECRET_WORDS})S?($|_)", re.IGNORECASE)
FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]+)")
MIN_SECRET_LENGTH = 8  # characters of a value that is told from any other text by itself


def refuse_secrets(asked: Mapping[str, Any], values: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """See that no setting is made of a secret.

    Args:
        asked: The composed configuration as it was written, with ``${...}``.
        values: The same, resolved.

    Raises:
        UserError: naming the setting and the variable, and not its value.
    """
    for setting, text in _iter_texts(asked):
        for name in FROM_ENVIRONMENT.findall(text):
            if SECRET_NAME.search(name):
                raise _refusal(setting, name)
    secrets = {
        v: name
        for name, v in env.items()
        if SECRET_NAME.search(name) and len(v) >= MIN_SECRET_LENGTH and not os.path.exists(v)
    }
    for setting, text in _iter_texts(values):
        if name := next((name for value, name in secrets.items() if value in text), None):
            raise _refusal(setting, name)


def _refusal(setting: str, variable: str) -> UserError:
    return UserError(
        f"{setting or 'a name of a setting'}: holds what {variable} holds, and a configuration is written down for "
        "others to read; leave it out: jobs find the variable in their environment"
    )


def _iter_texts(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested settings, names of settings included, with its dotted name."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield path, str(key)
            yield from _iter_texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(values, (list, tuple)):
        for item in values:
            yield from _iter_texts(item, path)
    elif values is not None:
        yield path, str(values)
