"""Headless Chromium for tests: what a page looks like, and where its elements lie."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 120


def find_chromium() -> str | None:
    """The first Chromium on PATH."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def why_no_chromium() -> str:
    """Reason why pages cannot be shown; "" if they can."""
    return "" if find_chromium() else f"there is no Chromium (none of {', '.join(NAMES)} on PATH): apt install chromium"


def _run(folder: Path, width: int, height: int, *more: str) -> str:
    chromium = find_chromium()
    assert chromium is not None
    # No network is asked for, and none would answer: every name resolves to nothing.
    options = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},{height}",
        "--virtual-time-budget=2000",
    ]
    if os.getuid() == 0:
        options.append("--no-sandbox")
    done = subprocess.run([chromium, *options, *more], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def screenshot(page: Path, picture: Path, width: int, height: int, *more: str) -> None:
    """Take a picture of a page."""
    _run(page.parent, width, height, *more, f"--screenshot={picture}", page.as_uri())


def measured(page: Path, script: str, width: int, height: int = 1000) -> Any:
    """Result of a function body of JavaScript on a page, which is shown with nothing else changed."""
    probe = f"""<script>addEventListener("load", () => {{
        const found = (() => {{ {script} }})();
        const shown = document.createElement("pre");
        shown.id = "found"; shown.textContent = JSON.stringify(found); document.body.append(shown);
    }});</script></body>"""
    copy = page.with_name(f"probed-{page.name}")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    text = _run(page.parent, width, height, "--dump-dom", copy.as_uri())
    answer = re.search(r'<pre id="found">(.*?)</pre>', text, re.S)
    assert answer, text[-2000:]
    return json.loads(unescape(answer[1]))
