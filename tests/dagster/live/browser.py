"""A page in headless Chromium, driven over its DevTools protocol: opens, waits, clicks, looks, takes pictures.

In come addresses and the texts that a user would look for; out come what stands on the page and PNG files.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
"""Chromium on this machine; None where there is none."""

_WIDTH, _HEIGHT = 1500, 1400
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--mute-audio", "--no-first-run"),
    *("--disable-background-networking", "--disable-dev-shm-usage", "--remote-debugging-port=0"),
    f"--window-size={_WIDTH},{_HEIGHT}",
)


class Page:
    """One tab. What is waited for and does not come fails with the text that is on the page instead."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        size = {"width": _WIDTH, "height": _HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)

    def text(self) -> str:
        """All text that is shown."""
        found: str = self._evaluate("document.body ? document.body.innerText : ''")
        return found

    def wait_for(self, *texts: str, seconds: float = 60) -> None:
        """Until all of `texts` are on the page, in whatever case its style sheet shows them."""
        missing = list(texts)
        deadline = time.monotonic() + seconds
        while missing:
            shown = self.text().lower()
            missing = [text for text in texts if text.lower() not in shown]
            assert time.monotonic() < deadline, f"{missing} did not appear within {seconds:.0f} s on:\n{self.text()}"
            time.sleep(0.2)

    def click(self, text: str, seconds: float = 60) -> None:
        """The innermost thing whose whole text is `text`, as soon as it is there."""
        self._on(text, "click()", seconds)

    def scroll_to(self, text: str, seconds: float = 60) -> None:
        """Until the innermost thing whose whole text is `text` is the first on the page."""
        self._on(text, "scrollIntoView()", seconds)

    def count(self, selector: str) -> int:
        """How many elements the CSS `selector` finds."""
        found: int = self._evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")
        return found

    def picture(self, file: Path) -> None:
        """What the window shows, as PNG."""
        time.sleep(1)  # drawings that fade in
        shot = self._call("Page.captureScreenshot", format="png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _on(self, text: str, action: str, seconds: float) -> None:
        act = f"""(() => {{
            const all = [...document.querySelectorAll('button, a, span, div, label')];
            const found = all.filter(each => each.innerText && each.innerText.trim() === {json.dumps(text)});
            if (!found.length) return false;
            found[found.length - 1].{action};
            return true;
        }})()"""
        deadline = time.monotonic() + seconds
        while not self._evaluate(act):
            assert time.monotonic() < deadline, f"nothing is called {text!r} on:\n{self.text()}"
            time.sleep(0.2)

    def _evaluate(self, expression: str) -> Any:
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result


@contextmanager
def browser_page(folder: Path) -> Iterator[Page]:
    """A tab of a Chromium of its own with its profile in `folder`; the browser is gone when the block is left."""
    assert PROGRAM is not None
    process = subprocess.Popen(
        [PROGRAM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with connect(_tab(folder, process), max_size=None, open_timeout=60) as connection:
            yield Page(connection)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tab(folder: Path, process: subprocess.Popen[bytes], seconds: float = 60) -> str:
    """The address at which the first tab takes commands."""
    port_file = folder / "DevToolsActivePort"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, ValueError, IndexError, httpx.HTTPError):  # the file may be empty yet
            port = int(port_file.read_text().split()[0])
            tabs = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=10).json()
            for tab in tabs:
                if tab["type"] == "page":
                    address: str = tab["webSocketDebuggerUrl"]
                    return address
        time.sleep(0.1)
    raise AssertionError(f"Chromium did not open a tab within {seconds:.0f} s")
