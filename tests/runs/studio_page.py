"""A page of the studio in a real browser: how tests find their way on it.

GENLAB_SCREENSHOTS=FOLDER writes a picture of each state of the page.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CHROMIUM = shutil.which("chromium")
PATIENCE = 60_000  # milliseconds until something that should come counts as missing
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-proxy-server"]


def expect(locator):
    """Playwright's expect, with patience."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    return expect(locator)


def visit(page, address):
    """Open the page and wait until it is filled."""
    page.goto(address)
    expect(button(page, "Generate")).to_be_enabled()


def tab(page, name):
    """Turn to a panel."""
    page.get_by_role("tab", name=name, exact=True).click()


def turn_to(page, name):
    """As `tab`, also where there is no room for all of them."""
    found = page.get_by_role("tab", name=name, exact=True)
    if found.is_visible():
        found.click()
        return
    page.get_by_role("button", name="More tabs").click()
    page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()


def button(page, name):
    """The button of that name that can be seen."""
    return page.get_by_role("button", name=name, exact=True)


def status(page):
    """The line of the panel in sight that says how its job goes."""
    return page.locator(".status:visible [role=status]")


def pictures(page, kind=""):
    """Those of the Generate panel's gallery."""
    return page.locator(f"#gallery .grid-container img{kind}")


def fill(page, label, value):
    """Type into the visible number field of that label."""
    field = page.get_by_label(label).locator("visible=true").first
    field.fill(str(value))
    field.blur()


def screenshot(page, name):
    """A picture of the whole page, if they are wanted."""
    if folder := os.environ.get("GENLAB_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
