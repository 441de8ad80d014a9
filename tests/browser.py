"""A headless Chromium, controlled over a pipe by the DevTools protocol: JSON messages that end in a zero byte."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from queue import Empty, Queue
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
BINARY = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--no-first-run", "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe")
PATIENCE = 60  # seconds for an answer, on a busy machine
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9}


class Browser:
    """One window. Attributes: complaints, the messages of console, page and log since `open`."""

    def __init__(self, profile: Path) -> None:
        (theirs, self._out), (inward, outward) = os.pipe(), os.pipe()
        self.complaints: list[str] = []
        self._numbers, self._in, self._messages = itertools.count(1), inward, Queue[dict[str, Any]]()

        def place() -> None:  # the pipes of the protocol are 3 and 4; copied first, because ours may be 4
            copies = os.dup(theirs), os.dup(outward)
            os.dup2(copies[0], 3)
            os.dup2(copies[1], 4)

        assert BINARY is not None
        self._process = subprocess.Popen([BINARY, *FLAGS, f"--user-data-dir={profile}"], preexec_fn=place,
                                         close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(outward)
        threading.Thread(target=self._listen, daemon=True).start()
        self._session = ""
        page = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def open(self, page: Path, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Load a file, at a width in CSS pixels, in the light or dark color scheme."""
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme",
                                                           "value": "dark" if dark else "light"}])
        self.complaints.clear()
        self.tell("Page.navigate", url=page.resolve().as_uri())
        self._wait_for("Page.loadEventFired")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page. Raises `RuntimeError` if it throws."""
        found = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        data = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        os.close(self._out)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a message of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": self._session} if self._session
                                                                        else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _wait_for(self, event: str) -> None:
        while (message := self._next()).get("method") != event:
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(message["params"])[:500])

    def _next(self) -> dict[str, Any]:
        try:
            return self._messages.get(timeout=PATIENCE)
        except Empty:
            raise RuntimeError(f"{BINARY} has not answered for {PATIENCE} seconds") from None

    def _listen(self) -> None:
        rest = b""
        while piece := os.read(self._in, 2**20):
            *whole, rest = (rest + piece).split(b"\0")
            for message in whole:
                self._messages.put(json.loads(message))
