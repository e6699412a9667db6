"""What the texts among the settings must match.

A batch script is text: with a newline or a quote, a value could run as a command, or hide the lines after it from
sbatch.
"""

from __future__ import annotations

from typing import NamedTuple


class Pattern(NamedTuple):
    """A regular expression for a full text, and what a message says was expected."""

    regex: str
    expected: str


NAME_REGEX = r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*"
HOST_REGEX = r"[A-Za-z0-9][A-Za-z0-9_.-]*(\[[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\][A-Za-z0-9_.-]*)*"
GRES_REGEX = r"[A-Za-z][A-Za-z0-9_]*(:[A-Za-z0-9_.-]+)?(:[0-9]+[KMGT]?)?"
NAME = Pattern(NAME_REGEX, "letters, digits and . _ + @ -")
PARTITIONS = Pattern(f"{NAME_REGEX}(,{NAME_REGEX})*", "names as `sinfo` lists them, such as gpu or a100,h100")
FEATURES = Pattern(
    r"[A-Za-z0-9_\[(][A-Za-z0-9_.+,|&*()\[\]-]*", "features joined by | & , [] () and *, such as h200|l40s"
)
GRES = Pattern(f"{GRES_REGEX}(,{GRES_REGEX})*", "NAME:COUNT or NAME:KIND:COUNT, such as gpu:rtx8000:2")
COMMENT = Pattern(r"[A-Za-z0-9_][A-Za-z0-9_.,:;=+/@ -]*", "letters, digits, space and . , : ; = + / @ _ -")
OPTION = Pattern(
    r"-?[A-Za-z0-9_+./@][A-Za-z0-9_.,:;=+/@()\[\]*|&% -]*",
    "letters, digits, space and . , : ; = + / @ ( ) [ ] * | & % _ -",
)
HOSTS = Pattern(f"{HOST_REGEX}(,{HOST_REGEX})*", "node names, such as node[1-3,7]")
MAIL_ADDRESS = Pattern(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(@[A-Za-z0-9.-]+)?", "a mail address")
PROGRAM = Pattern(r"[A-Za-z0-9_./][A-Za-z0-9_./+@=-]*", "the path of one program, without spaces or quotes")
IMAGE = Pattern(r"[A-Za-z0-9_./][A-Za-z0-9_./:@#+=-]*", "an image as enroot names it, or a path without spaces")
FOLDER = Pattern(
    r"(/|\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*\})[A-Za-z0-9_./+@=-]*",
    "a folder that begins with / or a variable, such as $SLURM_TMPDIR or /tmp",
)
VARIABLE = Pattern(
    r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable, as the address itself would be saved in the run"
)
RUN_NAME = Pattern(r"[^\W_][\w.-]*", "letters, digits, '-', '_' and '.', beginning with a letter or digit")
DATA_NAME = Pattern(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "letters, digits, '-', '_' and '.', because it names a folder")
