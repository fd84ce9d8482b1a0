"""Drives a headless Chromium for tests, over the pipe of its --remote-debugging-pipe: messages are JSON, ended by NUL.

A pipe needs no port that may be taken and no package. Commands: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT = 30  # seconds for an answer

KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}  # virtual key codes


def find() -> str | None:
    """The browser's program, or None if there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """A browser with one page. Use it as a context: it is closed at the end.

    Args:
        webgpu: whether to have WebGPU, by SwiftShader on the processor, where the browser brings it.
    """

    def __init__(self, program: str, profile: Path, *, webgpu: bool = False):
        to_browser, self._commands = os.pipe()
        self._answers, from_browser = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] if webgpu else ["--disable-gpu"]
        flags += ["--enable-features=Vulkan", "--use-vulkan=swiftshader"] if webgpu else []
        flags += ["--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # The browser reads commands from descriptor 3 and answers on 4; the shell moves the pipes there.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", program, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._received, self._session = 0, b"", None
        self.problems: list[str] = []  # what the page's console and failed requests said
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_):
        os.close(self._commands)  # the browser ends when its pipe does
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def call(self, method: str, **params) -> dict:
        """Sends a command and waits for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict:
        while b"\0" not in self._received:
            if not select.select([self._answers], [], [], TIMEOUT)[0]:
                raise TimeoutError(f"the browser did not answer within {TIMEOUT} s")
            part = os.read(self._answers, 1 << 20)
            if not part:
                raise RuntimeError(f"the browser ended with status {self._process.wait(10)}")
            self._received += part
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: dict) -> None:
        said = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(said["exceptionDetails"].get("exception", said)))
        elif event.get("method") == "Log.entryAdded" and said["entry"]["level"] in ("warning", "error"):
            self.problems.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif event.get("method") == "Network.requestWillBeSent":
            url = said["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.problems.append(f"asks for {url}")

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Sets the window's size in CSS pixels, and whether the user prefers dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Opens a page and waits until it and its pictures have been loaded."""
        self.call("Page.navigate", url="about:blank")  # a new hash alone would not load the page anew
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({url.split('#')[0]!r}) && document.readyState === 'complete'")
        self.pictures()

    def pictures(self) -> None:
        """Waits until all pictures that are wanted now are there, and drawn."""
        self.wait("[...document.images].every(i => i.complete || i.loading === 'lazy')")
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str):
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']['exception'].get('description')}")
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + TIMEOUT
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.01)

    def press(self, key: str, times: int = 1) -> None:
        """Presses a key, one of KEYS or a character, in what has the focus."""
        code = {"windowsVirtualKeyCode": KEYS[key]} if key in KEYS else {"text": key}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="rawKeyDown" if key in KEYS else "keyDown", key=key, **code)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drags the mouse between two points of the window, in CSS pixels; a click if they are the same."""
        (x, y), (to_x, to_y) = start, end
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        for part in (0.5, 1) if start != end else ():
            at = {"x": x + part * (to_x - x), "y": y + part * (to_y - y)}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", **at, button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=to_y, button="left", clickCount=1)

    def screenshot(self, selector: str | None = None, *, whole: bool = False) -> bytes:
        """PNG of the window, of all of the page, or of an element."""
        if selector is None:
            data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        else:
            box = self.run(
                f"(({{x, y, width, height}}) => ({{x: x + scrollX, y: y + scrollY, width, height, scale: 1}}))"
                f"(document.querySelector({selector!r}).getBoundingClientRect())"
            )
            box = {name: round(value) for name, value in box.items()}  # else what is between pixels would be blended
            data = self.call("Page.captureScreenshot", clip=box, captureBeyondViewport=True)
        return base64.b64decode(data["data"])
