"""All promises, in the order of the page."""

from __future__ import annotations

from tests.torture import cut_saves, killed, one_writer

PROMISES = tuple(sorted((m.PROMISE for m in (cut_saves, killed, one_writer)), key=lambda promise: promise.number))
