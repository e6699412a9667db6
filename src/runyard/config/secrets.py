"""Keeps secrets of the environment out of configurations, which are written into run directories, scripts and logs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from runyard.errors import UserError

# As separate words: TOKENIZERS_PARALLELISM is not a secret, nor is PWD, the shell's directory.
SECRET_WORDS = "KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PAT|AUTH|CREDENTIAL|WEBHOOK"
SECRET_NAME = re.compile(rf"(^|_)(API|ACCESS|PRIVATE)?({SECRET_WORDS})S?($|_)|_PWD($|_)", re.IGNORECASE)
FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?([^,}\s'\"]+)")
MIN_SECRET_LENGTH = 8  # characters; a shorter value could occur in a text by chance


def refuse_secrets(unresolved: Mapping[str, object], values: Mapping[str, object], env: Mapping[str, str]) -> None:
    """Refuse a configuration that contains a secret from the environment.

    Args:
        unresolved: The composed configuration with its ``${...}`` references.
        values: The same configuration, resolved.
        env: The environment variables.

    Raises:
        UserError: a setting contains a secret; the message names the setting and the variable, but not its value.
    """
    for setting, text in _iter_texts(unresolved):
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
        f"{setting or 'a name of a setting'}: holds the value of {variable}, and others can read a saved configuration",
        "leave it out: jobs find the variable in their environment",
    )


def _iter_texts(values: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in nested settings, including the names of settings, with its dotted name."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield path, str(key)
            yield from _iter_texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(values, (list, tuple)):
        for item in values:
            yield from _iter_texts(item, path)
    elif values is not None:
        yield path, str(values)
