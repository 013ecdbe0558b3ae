"""A page in headless Chromium, through the browser's debugging pipe: what it draws, loads, and complains of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
          "--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars")  # fmt: skip


class Page:
    """A page that is open; `events` are those of the runtime, the log and the network."""

    def __init__(self, out: int, back: int) -> None:
        self.out, self.back, self.number, self.rest = out, back, 0, b""
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser and wait for its answer; events on the way are kept."""
        self.number += 1
        asked: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            asked["sessionId"] = self.session
        os.write(self.out, json.dumps(asked).encode() + b"\0")
        while (message := self._message()).get("id") != self.number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            chunk = os.read(self.back, 1 << 16)
            assert chunk, "the browser has gone"
            self.rest += chunk
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def show(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        """Open a file in a window of this size and wait until it is drawn."""
        self.events.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.value("document.readyState") != "complete":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.05)
        self.value("new Promise(r => requestAnimationFrame(() => setTimeout(r, 300)))")

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of scripts and of the console."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(one["params"])[:600] for one in self.events if one.get("method") in kinds]

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for, data addresses aside."""
        asked = [
            one["params"]["request"]["url"]
            for one in self.events
            if one.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("data:")]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A headless browser; the test is skipped, and says so, where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed")
    to_read, out = os.pipe()
    back, to_write = os.pipe()
    # The browser reads commands from descriptor 3 and answers on 4; they are moved there on its way.
    moved = f"import os, sys; a, b = os.dup({to_read}), os.dup({to_write}); os.dup2(a, 3); os.dup2(b, 4)"
    moved += "; [os.set_inheritable(one, True) for one in (3, 4)]"
    shell = [sys.executable, "-c", f"{moved}; os.execv(sys.argv[1], sys.argv[1:])"]
    command = [*shell, found, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield _attached(Page(out, back))
    finally:
        process.kill()
        process.wait()
        for one in (out, back):
            with suppress(OSError):
                os.close(one)


def _attached(page: Page) -> Page:
    target = page.call("Target.createTarget", url="about:blank")["targetId"]
    page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        page.call(f"{domain}.enable")
    return page
