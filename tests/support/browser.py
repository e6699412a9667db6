"""A headless Chromium for tests of pages, driven over its own debugging protocol through a pipe.

The protocol is JSON between zero bytes on the browser's file descriptors 3 and 4, so no driver, port or library is
needed: only Debian's package `chromium` (or Chrome).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.settings import PATIENCE_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Own files only, no services of the browser's own, and a clock that does not stop in the background.
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find() -> str:
    """The browser's program. Without one the test is skipped, which under CI=true fails the whole run."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser here (looked for {', '.join(NAMES)}); as root: apt-get install chromium fonts-dejavu")
    return program


class Browser:
    """One browser with one tab. What the shown page asks of the network and complains about is collected.

    Attributes:
        requests: Addresses that the page asked for since ``open``, itself and data: addresses left out.
        complaints: Uncaught exceptions, console errors and warnings, and the browser's own error messages.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._folder = tempfile.mkdtemp(prefix="browser-")
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # dup2 to descriptors 3 and 4 in a shell: the test's own process may use those numbers
        line = f'exec "$@" 3</proc/self/fd/{to_browser} 4>/proc/self/fd/{from_browser}'
        self._process = subprocess.Popen(
            ["sh", "-c", line, "sh", find(), *OPTIONS, f"--user-data-dir={self._folder}"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._heard, self._session, self._shown = 0, b"", "", ""
        tab = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._write)  # it ends with its pipe
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        shutil.rmtree(self._folder, ignore_errors=True)

    def window(self, width: int, height: int, *, dark: bool = False, touch: bool = False) -> None:
        """The size in CSS pixels, and the colours the reader prefers."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path, ready: str = "document.readyState === 'complete'") -> float:
        """Show a file and wait until the script ``ready`` is true. Returns the seconds that took."""
        self.requests, self.complaints = [], []
        self._shown = Path(page).absolute().as_uri()
        begun = time.monotonic()
        self._ask("Page.navigate", url=self._shown)
        self.wait(f"location.href !== 'about:blank' && document.documentElement && ({ready})")
        return time.monotonic() - begun

    def wait(self, condition: str) -> None:
        """Until the script ``condition`` is true.

        Raises:
            TimeoutError: it was not within a minute; says what the page complained about.
        """
        end = time.monotonic() + PATIENCE_S
        while not self.run(f"!!({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} did not come true; the page said {self.complaints}")
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """The value of a script in the page; a promise is awaited."""
        answer = self._ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """One key, as from a keyboard: Tab, Enter, " "."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        shared = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": codes[key]}
        if key in ("Enter", " "):
            shared["text"] = {"Enter": "\r"}.get(key, key)
        self._ask("Input.dispatchKeyEvent", type="keyDown", **shared)
        self._ask(
            "Input.dispatchKeyEvent", type="keyUp", key=key, code=shared["code"], windowsVirtualKeyCode=codes[key]
        )

    def move(self, x: float, y: float) -> None:
        """The mouse's pointer to this place of the window."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page: all of it, or what the window shows."""
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._hear()
            if heard.get("id") == self._number:
                if "error" in heard:
                    raise RuntimeError(f"{method}: {heard['error']}")
                return heard["result"]  # type: ignore[no-any-return]
            self._note(heard)

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._heard:
            if not select.select([self._read], [], [], PATIENCE_S)[0]:
                raise TimeoutError(f"the browser said nothing for {PATIENCE_S:.0f} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError(f"the browser ended, exit code {self._process.wait()}")
            self._heard += part
        line, _, self._heard = self._heard.partition(b"\0")
        return json.loads(line)  # type: ignore[no-any-return]

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                address = about["request"]["url"]
                if not address.startswith("data:") and address.partition("#")[0] != self._shown:
                    self.requests.append(address)
            case "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.complaints.append(" ".join(str(argument.get("value")) for argument in about["args"]))
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.complaints.append(about["entry"]["text"])
