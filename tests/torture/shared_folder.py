"""A folder that the victim and another user share, for the promise about other users (``other_users``)."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.fake_runs import fabricate
from tests.support.zygote import First
from tests.torture.promise import Attacker, hold

OTHER = 65534  # nobody's uid
SECRET = b"this is the victim's own"


class Share:
    """A folder that everybody may write, and a file of the victim's outside of it."""

    def __init__(self, a: Attacker) -> None:
        self.a, self.place = a, a.ground.scratch()
        self.shared = self.place / "shared"
        self.shared.mkdir()
        self.shared.chmod(0o1777)
        self.private = self.place / "private"
        self.private.write_bytes(SECRET)
        self.mark = self.place / "ran"

    def says(self, *words: str, first: First = (), **variables: str) -> tuple[int, str]:
        """A command of the victim's: its exit code and all it prints."""
        env = {"HOME": str(self.place), "COLUMNS": "200"} | variables
        code, said = self.a.ground.command(*words, env=env, first=first)
        hold("Traceback" not in said, f"{words[0]}: a traceback: {said.strip().splitlines()[-1:]}")
        return code, said

    def run(self, name: str = "20260901-000000-theirs-ab12", *settings: str, end: str = "finished") -> Path:
        """A run of the other user's in the shared folder, which anybody may read."""
        config = self.a.ground.config("tracking=none", *settings)
        return fabricate(self.shared, config, name, test_images=20, end=end)

    def theirs(self, *paths: Path) -> None:
        """All of it belongs to the other user."""
        for path in paths:
            for each in (path, *path.rglob("*")):
                os.chown(each, OTHER, OTHER, follow_symlinks=False)

    def unharmed(self, what: str) -> None:
        hold(self.private.read_bytes() == SECRET, f"{what}: a file of the victim's was overwritten")
        hold(not self.mark.exists(), f"{what}: what was planted ran")
