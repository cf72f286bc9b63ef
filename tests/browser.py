"""A real Chromium, driven through chromedriver's plain HTTP: no Python package is needed."""

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
OPTIONS = {
    "args": [
        "--headless=new",
        "--no-sandbox",  # root, as in a container, has none
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--force-color-profile=srgb",
        "--hide-scrollbars",  # a phone's take no room
    ],
    "binary": CHROMIUM,
    "perfLoggingPrefs": {"enableNetwork": True, "enablePage": False},
}
CAPABILITIES = {
    "browserName": "chrome",
    "goog:chromeOptions": OPTIONS,
    "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
}


class Browser:
    """One window. Elements are named by CSS selectors, in scripts by what JavaScript gives."""

    def __init__(self, address: str) -> None:
        self._address = address
        asked = {"capabilities": {"alwaysMatch": CAPABILITIES}}
        session = self._call("POST", "/session", asked)["sessionId"]
        self._address = f"{address}/session/{session}"

    def open(self, page: Path) -> None:
        """Load a file; returns when all of it is there."""
        self._call("POST", "/url", {"url": page.absolute().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What `script`, the body of a function, returns; a promise is waited for."""
        wrapped = f"return (async function() {{ {script} }}).apply(null, arguments)"
        return self._call("POST", "/execute/sync", {"script": wrapped, "args": list(arguments)})

    def tools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Of the page; a window has a least width, an emulated screen has none."""
        self.tools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.tools("Emulation.setTouchEmulationEnabled", enabled=phone)

    def point(self, kind: str, *places: tuple[float, float]) -> None:
        """Press at the first place (of the visible page), drag over the others, let go."""
        steps: list[dict[str, Any]] = [
            {"type": "pointerMove", "x": round(x), "y": round(y), "duration": 20} for x, y in places
        ]
        steps.insert(1, {"type": "pointerDown", "button": 0})
        steps.append({"type": "pointerUp", "button": 0})
        source = {
            "type": "pointer",
            "id": kind,
            "parameters": {"pointerType": kind},
            "actions": steps,
        }
        self._call("POST", "/actions", {"actions": [source]})

    def press(self, key: str, times: int = 1) -> None:
        """A key, by its code point of the WebDriver standard, where the focus is."""
        steps = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")] * times
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": steps}]})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since it was last asked for: `browser` is the console."""
        return self._call("POST", "/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """The addresses of all requests since this was last asked."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            each["params"]["request"]["url"]
            for each in events
            if each["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def pdf(self) -> bytes:
        """The page printed on A4."""
        page = {"page": {"width": 21.0, "height": 29.7}, "background": True}
        return base64.b64decode(self._call("POST", "/print", page))

    def close(self) -> None:
        self._call("DELETE", "")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._address + path, data=data, method=method)
        try:
            with urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:2000]}") from error


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of its own, gone afterwards."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(
            "chromium and chromedriver are not installed "
            "(Debian: apt-get install chromium chromium-driver)"
        )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, driver)
        browser = Browser(address)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(timeout=20)


def _wait_for(address: str, driver: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            with urlopen(f"{address}/status", timeout=5) as answer:
                if json.load(answer)["value"]["ready"]:
                    return
        except (URLError, OSError):
            pass
        assert driver.poll() is None, "chromedriver ended"
        assert time.monotonic() < until, "chromedriver doesn't answer"
        time.sleep(0.1)
