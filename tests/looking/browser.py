"""A headless Chromium, driven through its DevTools: what it draws, and all that it asks a network for."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tornado.websocket import websocket_connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program() -> str | None:
    """Return the browser of this machine, None if there is none."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


class Page:
    """An open page; ``messages`` are those of its console, ``requests`` the addresses of all it asked for."""

    def __init__(self, send: Callable[..., Any], messages: list[str], requests: list[str]) -> None:
        self.send, self.messages, self.requests = send, messages, requests

    async def run(self, script: str) -> Any:
        """Return what an expression gives."""
        answer = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not await self.run(script):
            assert time.monotonic() < end, f"{script} did not become true; console: {self.messages}"
            await asyncio.sleep(0.1)

    async def picture(self, path: Path | None = None) -> np.ndarray:
        """Return what is seen: (3, H, W)."""
        await self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        data = base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])
        if path:
            path.write_bytes(data)
        return np.moveaxis(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), -1, 0)

    async def click(self, x: float, y: float) -> None:
        """Click at a pixel."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def set(self, element: str, value: float) -> None:
        """Move a slider."""
        await self.run(
            f"(() => {{ const e = document.getElementById({json.dumps(element)}); e.value = {value}; "
            "e.dispatchEvent(new Event('input')); })()"
        )

    async def toggle(self, selector: str) -> None:
        """Click a checkbox that a selector finds."""
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")


def visit(
    address: str, act: Callable[[Page], Any], profile: Path, *, width: int = 1200, height: int = 800
) -> tuple[list[str], list[str]]:
    """Open a page, let ``act`` do with it what it wants, and return messages of the console and requests."""
    return asyncio.run(_visit(address, act, profile, width, height))


async def _visit(
    address: str, act: Callable[[Page], Any], profile: Path, width: int, height: int
) -> tuple[list[str], list[str]]:
    options = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--force-device-scale-factor=1", "--force-color-profile=srgb"),
        *(f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"),
    ]
    process = subprocess.Popen(
        [str(program()), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TZ": "UTC"},
    )
    try:
        return await _session(address, act, await _port(profile, process), width, height)
    finally:
        process.terminate()
        process.wait(timeout=30)


async def _port(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return where the browser listens, once it does."""
    told = profile / "DevToolsActivePort"
    end = time.monotonic() + 60
    while not (told.exists() and len(told.read_text().splitlines()) == 2):
        assert process.poll() is None, "the browser ended"
        assert time.monotonic() < end, "the browser did not start"
        await asyncio.sleep(0.1)
    port, path = told.read_text().splitlines()
    return f"ws://127.0.0.1:{port}{path}"


async def _session(
    address: str, act: Callable[[Page], Any], socket: str, width: int, height: int
) -> tuple[list[str], list[str]]:
    connection = await websocket_connect(socket, max_message_size=1 << 28)
    numbers, waiting = itertools.count(1), dict[int, asyncio.Future[Any]]()
    messages: list[str] = []
    requests: list[str] = []

    async def listen() -> None:
        while (text := await connection.read_message()) is not None:
            message = json.loads(text)
            if message.get("id") in waiting:
                waiting.pop(message["id"]).set_result(message)
            elif message.get("method") == "Network.requestWillBeSent":
                requests.append(message["params"]["request"]["url"])
            elif message.get("method") == "Runtime.consoleAPICalled":
                messages.append(" ".join(str(a.get("value")) for a in message["params"]["args"]))
            elif message.get("method") == "Log.entryAdded":
                messages.append(message["params"]["entry"]["text"])
            elif message.get("method") == "Runtime.exceptionThrown":
                messages.append(str(message["params"]["exceptionDetails"]))

    session: dict[str, str] = {}

    async def send(method: str, **parameters: Any) -> Any:
        number = next(numbers)
        waiting[number] = asyncio.get_running_loop().create_future()
        future = waiting[number]
        await connection.write_message(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        answer = await asyncio.wait_for(future, 60)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    listening = asyncio.ensure_future(listen())
    try:
        target = (await send("Target.getTargets"))["targetInfos"]
        page = next(each["targetId"] for each in target if each["type"] == "page")
        session["sessionId"] = (await send("Target.attachToTarget", targetId=page, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await send(f"{domain}.enable")
        await send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        await send("Page.navigate", url=address)
        await act(Page(send, messages, requests))
    finally:
        listening.cancel()
        connection.close()
    return messages, requests
