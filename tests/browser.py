"""Debian's Chromium, driven from a test, and what a page may never do in it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from tests.paying import until

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE = {"width": 390, "height": 844}
NARROW = {"width": 320, "height": 640}
DESKTOP = {"width": 1280, "height": 860}


def installed() -> str | None:
    """The browser of this machine: none is ever downloaded."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@asynccontextmanager
async def chromium(path: str) -> AsyncIterator[Browser]:
    """A browser of its own. Chromium has no sandbox for root, as CI is."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


class Visit:
    """One page in a browser, at one size and colour scheme, and all that it complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    async def text(self, selector: str) -> str:
        return (await self.page.inner_text(selector)).strip()

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.page.keyboard.press(key)

    async def tab_to(self, selector: str, limit: int = 60) -> None:
        """Presses Tab until that has the focus."""
        for _ in range(limit):
            await self.press("Tab")
            if await self.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{limit} times Tab do not lead to {selector}")

    async def until(self, expression: str) -> None:
        """Waits for something to hold in the page; asked from here, since its policy evaluates nothing."""
        await until(lambda: self.page.evaluate(expression))


@asynccontextmanager
async def visiting(browser: Browser, url: str, size: dict[str, int], **how: Any) -> AsyncIterator[Visit]:
    """A page that is loaded, in a context of its own; `how` is what the context is made with."""
    context = await browser.new_context(viewport=size, accept_downloads=True, **how)  # type: ignore[arg-type]
    try:
        visit = Visit(await context.new_page())
        await visit.page.goto(url)
        yield visit
    finally:
        await context.close()
