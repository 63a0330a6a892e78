"""Pages in a real Chromium without a window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browse(folder: Path, file: Path, *flags: str) -> str:
    """What the browser prints for a page; ``folder`` is for its profile."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: {', '.join(BROWSERS)}")
    profile = folder / f"profile{len(list(folder.iterdir()))}"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}", *flags]
    run = subprocess.run([*command, file.as_uri()], capture_output=True, timeout=120, check=True)
    return run.stdout.decode()


def measured(folder: Path, text: str, script: str, width: int, scheme: int) -> dict[str, Any]:
    """What a script in the page finds: it sets the title of the parent window to JSON.

    Args:
        folder: for the files.
        width: of the page, in pixels.
        scheme: 0 = dark, 1 = light.
    """
    (folder / "whole.html").write_text(text.replace("<head>", "<head>" + script), "utf-8")
    # a window has a least width, a frame has none
    frame = '<!DOCTYPE html><body style="margin:0"><iframe src="whole.html" '
    frame += f'style="border:0;width:{width}px;height:3600px"></iframe>'
    file = folder / "page.html"
    file.write_text(frame, encoding="utf-8")
    flags = ["--window-size=1300,3600", f"--blink-settings=preferredColorScheme={scheme}"]
    flags += ["--virtual-time-budget=9000", "--allow-file-access-from-files", "--dump-dom"]
    dom = browse(folder, file, *flags)
    found = re.search("<title>(.*?)</title>", dom, re.S)
    assert found is not None, "the script has not run"
    return dict(json.loads(html.unescape(found[1])))
