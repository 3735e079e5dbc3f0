"""Headless Chromium by its own protocol over a pipe: no driver, no package.

https://chromedevtools.github.io/devtools-protocol; with --remote-debugging-pipe, messages of JSON that end in a zero
byte go in at file 3 and come out at file 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_S = 60.0


class Browser:
    """One page of a browser; `close` ends it.

    Args:
        folder: of its scorer.
        width, height: of the window, in pixels.
    """

    def __init__(self, folder: Path, width: int = 1400, height: int = 1000) -> None:
        assert CHROMIUM is not None
        orders, self._orders = os.pipe()
        self._news, news = os.pipe()
        quiet = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
        command = [CHROMIUM, *quiet, "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
        script = f'exec "$@" 3<&{orders} 4>&{news}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command], pass_fds=(orders, news), stderr=subprocess.DEVNULL
        )
        os.close(orders)
        os.close(news)
        self._buffer, self._last = b"", 0
        self.errors: list[str] = []  # exceptions of the page, and what it asked of the network
        try:
            self._attach(width, height)
        except Exception:
            self.close()
            raise

    def _attach(self, width: int, height: int) -> None:
        pages = self._send("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable", session=self._session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("Emulation.setDeviceMetricsOverride", session=self._session, **size)

    def open(self, path: Path) -> None:
        """Loads a file, and waits until all of it has run."""
        self._send("Page.navigate", session=self._session, url=path.resolve().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of an expression in the page; RuntimeError if it throws."""
        answer = self._send("Runtime.evaluate", session=self._session, expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, as a PNG."""
        shot = self._send("Page.captureScreenshot", session=self._session, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        os.close(self._orders)  # it ends when nobody can talk to it any more
        os.close(self._news)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._orders, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._last:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._news], [], [], PATIENCE_S)[0]:
                raise TimeoutError(f"the browser said nothing for {PATIENCE_S:g} s")
            self._buffer += (part := os.read(self._news, 1 << 16))
            if not part:
                raise RuntimeError("the browser has ended")
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, parameters: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith("file:"):
            self.errors.append(f"asked the network for {parameters['request']['url']}")
