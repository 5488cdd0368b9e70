"""The page of a class in a real browser: typeset, drawn, nothing loaded, nothing cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import measured, screenshot, why_no_chromium
from support.compiling import stock_package

from optgen.page import write_page

pytestmark = pytest.mark.skipif(bool(why_no_chromium()), reason=why_no_chromium())

CLASSES = {info.name: info for info in stock_package().classes}
# One pass, two with values between them, three with rows and columns, seven tensors and formulas of all kinds.
SHOWN = ("AdamW8bit", "LAMB8bit", "Adafactor", "Prodigy")
WIDTH = 1100
READ, WRITE = (0x00, 0x72, 0xB2), (0xC2, 0x57, 0x00)
PROBE = """
const box = (element) => { const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
const all = (query, within = document) => [...within.querySelectorAll(query)];
return {
  loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
  width: [document.documentElement.scrollWidth, innerWidth],
  fractions: all("mfrac").map((one) => [box(one), box(one.children[0]), box(one.children[1])]),
  powers: all("msup").map((one) => [box(one.children[0]), box(one.children[1])]),
  indices: all("msub").map((one) => [box(one.children[0]), box(one.children[1])]),
  roots: all("msqrt").map((one) => [box(one), box(one.children[0])]),
  lines: all(".line").map(box),
  pictures: all("svg").map((one) => [box(one), all("text", one).map((text) => [text.textContent, box(text)])]),
};
"""


def page(name: str, folder: Path) -> Path:
    path = folder / f"{name}.html"
    write_page(CLASSES[name], path)
    return path


def overlap(first: list[float], second: list[float]) -> float:
    """The width and height that two boxes share, the lesser of them."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    return min(across, down)


def check(found: Any) -> None:
    assert found["loaded"] == []
    assert found["width"][0] <= found["width"][1], "the page is wider than its window"
    for whole, above, below in found["fractions"]:
        assert whole[2] > whole[0]
        assert above[3] <= below[1] + 2, "a numerator does not stand above its denominator"
    for base, power in found["powers"]:
        assert (power[1] + power[3]) / 2 < (base[1] + base[3]) / 2
    for base, index in found["indices"]:
        assert (index[1] + index[3]) / 2 > (base[1] + base[3]) / 2
    for whole, inside in found["roots"]:
        assert whole[0] < inside[0], "a root has no sign before what it is of"
        assert whole[1] <= inside[1]
    for first, second in zip(found["lines"], found["lines"][1:], strict=False):
        assert overlap(first, second) <= 1
    for frame, texts in found["pictures"]:
        for number, (words, box) in enumerate(texts):
            inside = (
                box[0] >= frame[0] - 1 and box[1] >= frame[1] - 1 and box[2] <= frame[2] + 1 and box[3] <= frame[3] + 1
            )
            assert inside, f"`{words}` is cut off"
            for others, other in texts[number + 1 :]:
                assert overlap(box, other) <= 2, f"`{words}` and `{others}` lie on each other"


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_drawn_lies_where_it_should(name: str, tmp_path: Path) -> None:
    found = measured(page(name, tmp_path), PROBE, WIDTH)
    assert len(found["pictures"]) == 2
    assert found["fractions"] or name == "Lion"
    check(found)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(CLASSES) - set(SHOWN)))
def test_every_class_has_its_page(name: str, tmp_path: Path) -> None:
    check(measured(page(name, tmp_path), PROBE, WIDTH))


def test_a_narrow_window_scrolls_formulas_not_the_page(tmp_path: Path) -> None:
    found = measured(page("Adafactor", tmp_path), PROBE, 500)
    assert found["width"][0] <= found["width"][1]


def picture(name: str, folder: Path, *more: str) -> Any:
    from matplotlib.image import imread

    target = folder / "page.png"
    screenshot(page(name, folder), target, WIDTH, 4200, *more)
    pixels = np.rint(255 * imread(target)[:, :, :3]).astype(int)
    assert pixels.shape == (4200, WIDTH, 3)
    return pixels


def share(pixels: Any, colour: tuple[int, int, int]) -> float:
    return float((np.abs(pixels - np.array(colour)).max(axis=2) <= 3).mean())


def test_the_page_is_seen(tmp_path: Path) -> None:
    """White paper, dark ink of formulas and words, the bars of what is read and written in their colours."""
    pixels = picture("LAMB8bit", tmp_path)
    assert share(pixels, (255, 255, 255)) > 0.6
    assert 0.005 < float((pixels.max(axis=2) < 0x60).mean()) < 0.2
    moved = {"read": share(pixels, READ), "write": share(pixels, WRITE)}
    assert moved["write"] > 0.001
    # Of the 26 bytes that the bars show, 20 are read and 6 written; names in them and arrows take little.
    assert moved["read"] / moved["write"] == pytest.approx(20 / 6, rel=0.25)


def test_the_page_is_dark_where_that_is_asked_for(tmp_path: Path) -> None:
    pixels = picture("LAMB8bit", tmp_path, "--blink-settings=preferredColorScheme=0")
    assert share(pixels, (0x16, 0x19, 0x1D)) > 0.6
