"""For griffe, which reads the API reference from the source: a class of settings is shown as a list of them."""

from __future__ import annotations

import ast
import functools
from typing import Any

from griffe import Attribute, Class, ExprCall, Extension

from runyard.config import setting


class Settings(Extension):
    """``lr: float = recipe("Peak learning rate", minimum=0)`` becomes a line of the class's "Attributes:"."""

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        """A class was read, with all that it holds."""
        said = {name: documentation(attribute) for name, attribute in cls.attributes.items()}
        if cls.docstring and any(said.values()):
            lines = [f"    {name}: {doc or cls.attributes[name].annotation}" for name, doc in said.items()]
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)


def documentation(attribute: Attribute) -> str | None:
    """What ``recipe`` or another kind of setting says; None of another attribute."""
    match attribute.value:
        case ExprCall(function=function, arguments=[first, *_]):
            if isinstance(getattr(setting, str(function), None), functools.partial):
                return str(ast.literal_eval(str(first)))
    return None
