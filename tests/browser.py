"""A headless Chromium, driven over a pipe, that shows pages as a reader sees them."""

import json
import os
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

NAMES = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """Return the path of a Chromium on this machine, if there is one."""
    return next((path for name in NAMES if name and (path := shutil.which(name))), None)


class Shown(NamedTuple):
    """What came of showing a page."""

    width: int
    """Pixels that the page's body takes: more than the window's where it scrolls sideways."""
    picture: bytes
    """PNG of the whole page."""
    requests: list[str]
    """Addresses that were asked for, but for data within the page."""
    errors: list[str]
    """Messages on the console, and failures."""


class Browser:
    """A page of a running Chromium."""

    def __init__(self, sent: int, received: int) -> None:
        self.sent, self.received = os.fdopen(sent, "wb", 0), os.fdopen(received, "rb")
        self.session, self.number, self.events = "", 0, list[dict[str, Any]]()
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.sent.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.received.read(1)) != b"\0":
            assert byte, "the browser has gone"
            text += byte
        message: dict[str, Any] = json.loads(text)
        return message

    def show(self, page: Path, width: int, height: int, *, dark: bool) -> Shown:
        """Open a page in a window of so many pixels, in the light or dark scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        found = self.call("Runtime.evaluate", expression="document.documentElement.scrollWidth")
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        seen = {
            name: [e["params"] for e in self.events if e.get("method") == name] for name in SEEN
        }
        requests = [event["request"]["url"] for event in seen[REQUEST]]
        errors = [str(event) for name in SEEN if name != REQUEST for event in seen[name]]
        asked = [url for url in requests if not url.startswith(("data:", page.as_uri()))]
        return Shown(found["result"]["value"], b64decode(picture), asked, errors)


REQUEST = "Network.requestWillBeSent"
SEEN = (
    REQUEST,
    *("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"),
    "Network.loadingFailed",
)


@contextmanager
def browsing(program: str, home: Path) -> Iterator[Browser]:
    """Run a Chromium whose profile is in the folder `home`, and end it."""
    (its_in, sent), (received, its_out) = os.pipe(), os.pipe()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    flags += ["--no-first-run", "--disable-background-networking", f"--user-data-dir={home}"]
    # it reads what it is told from file 3 and writes its answers to file 4
    redirected = f'exec "$@" 3<&{its_in} 4>&{its_out}'
    process = subprocess.Popen(
        ["bash", "-c", redirected, "bash", program, *flags],
        pass_fds=(its_in, its_out),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(home)},
    )
    os.close(its_in)
    os.close(its_out)
    browser = Browser(sent, received)
    try:
        yield browser
    finally:
        browser.call("Browser.close") if process.poll() is None else None
        browser.sent.close()
        browser.received.close()
        process.wait(20)
