"""Renders the HTML templates of the comparison's page and of the report. Every value is escaped."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_template(template: str, **values: object) -> Markup:
    """Return the template ``FOLDER/NAME.html`` with these values, as HTML that another template does not escape.

    Raises:
        UndefinedError: the template names a value that is not given.
    """
    return Markup(ENVIRONMENT.get_template(template).render(values))


def data_uri(png: bytes) -> str:
    """Return a PNG as the address of an inlined picture."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
