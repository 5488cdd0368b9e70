"""The page's pictures as SVG: passes over memory, and the bytes of a step."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from optgen.console import brief
from optgen.page.layout import Lane, Layout

CHARACTER = 7.3  # width of a character of the fixed-width font at its size of 12
EDGE, TITLE, LANE_GAP, LEAST_LANE = 8, 76, 14, 124
HEADER, ABOVE, BAR, BELOW, LINE = 46, 44, 40, 44, 17
LEAST_WIDTH = 620
LABEL = 8
CHART, CHART_BAR, CHART_ROW = 960, 28, 52


def passes_picture(layout: Layout) -> Element:
    """Tensors as lanes from top to bottom, passes as bars across them; arrows say what is read and written."""
    lane = max([LEAST_LANE, *(CHARACTER * max(len(one.name), len(_kept(one))) + 28 for one in layout.lanes)])
    bar_left = EDGE + TITLE
    bar_right = bar_left + lane * len(layout.lanes)
    sizes = [size for item in layout.passes for size in (*item.reads.values(), *item.writes.values())]
    label = LABEL + CHARACTER * max(len(f"write {brief(size)}") for size in sizes)
    beyond = max(0.0, label - lane / 2)  # how far the labels of the last lane stand out beside the bars
    made = [f"{name}, one {unit}" for item in layout.passes for name, unit in item.makes]
    after = f"stored after it: {', '.join(layout.after)}" if layout.after else ""
    side = CHARACTER * max([0, *(len(text) for text in made)]) + (48 if made else 0)
    width = max(bar_right + beyond + side + EDGE, bar_left + CHARACTER * len(after) + EDGE, LEAST_WIDTH)
    heights = [max(ABOVE + BAR + BELOW, ABOVE + LINE * len(item.makes) + 20) for item in layout.passes]
    height = EDGE + HEADER + sum(heights) + (LINE + 6 if after else 0) + EDGE
    svg = _svg(width, height, "passes", f"{len(layout.passes)} passes over memory")
    centres = {one.name: bar_left + lane * (index + 0.5) for index, one in enumerate(layout.lanes)}
    bottom = EDGE + HEADER + sum(heights)
    for one in layout.lanes:
        x = centres[one.name]
        _line(svg, x, EDGE + HEADER, x, bottom, "lane")
        _box(svg, x - (lane - LANE_GAP) / 2, EDGE, lane - LANE_GAP, HEADER - 4, "tensor")
        _text(svg, x, EDGE + 17, one.name, "name middle")
        _text(svg, x, EDGE + 34, _kept(one), "small middle")
    top = EDGE + HEADER
    for index, (item, tall) in enumerate(zip(layout.passes, heights, strict=True)):
        y = top + ABOVE
        _box(svg, bar_left, y, bar_right - bar_left, BAR, "pass")
        _text(svg, EDGE, y + 17, f"pass {index + 1}", "name")
        _text(svg, EDGE, y + 34, f"{brief(item.bytes)} B", "small")
        for name, x in centres.items():
            touched = name in item.reads or name in item.writes
            if not touched:
                _line(svg, x, y, x, y + BAR, "lane passed")
            if name in item.reads:
                _arrow(svg, x, y - 16, y, "read")
                _text(svg, x + LABEL, y - 12, f"read {brief(item.reads[name])}", "small read")
            if name in item.writes:
                _arrow(svg, x, y + BAR, y + BAR + 18, "write")
                _text(svg, x + LABEL, y + BAR + 16, f"write {brief(item.writes[name])}", "small write")
        role = "reduces" if item.makes else "computes"
        _text(svg, (bar_left + bar_right) / 2, y + BAR / 2 + 4, f"{role} and writes" if item.writes else role, "role")
        if item.makes:
            said = [f"{name}, one {unit}" for name, unit in item.makes]
            _draw_values(svg, bar_right, bar_right + beyond + 14, y, said, top + tall + ABOVE + BAR / 2)
        top += tall
    if after:
        _text(svg, bar_left, bottom + LINE, after, "small")
    return svg


def _kept(lane: Lane) -> str:
    return f"{lane.stored}, {brief(lane.bytes)} B"


def _draw_values(svg: Element, right: float, x: float, y: float, lines: Sequence[str], next_bar: float) -> None:
    """Draw the values that a pass hands to the next one, beside the bars: an arrow out, the names, an arrow in."""
    _line(svg, right, y + BAR / 2, x, y + BAR / 2, "value")
    _line(svg, x, y + BAR / 2, x, next_bar, "value")
    _line(svg, x, next_bar, right + 8, next_bar, "value")
    SubElement(svg, "path", {"class": "value tip", "d": f"M{right + 1:g} {next_bar:g} l9 -5 v10 z"})
    for index, line in enumerate(lines):
        _text(svg, x + 10, y + 17 + LINE * index, line, "small value-name")


def traffic_picture(layout: Layout) -> Element:
    """The bytes of each pass as a bar: what is read of each tensor, then what is written."""
    widest = max(item.bytes for item in layout.passes)
    scale = (CHART - TITLE - 90) / widest
    svg = _svg(CHART, CHART_ROW * len(layout.passes) + EDGE, "traffic", "Bytes a parameter that each pass moves")
    for index, item in enumerate(layout.passes):
        y = EDGE + CHART_ROW * index
        _text(svg, EDGE, y + 19, f"pass {index + 1}", "name")
        x = float(EDGE + TITLE)
        parts = [(name, size, "read") for name, size in item.reads.items()]
        parts += [(name, size, "write") for name, size in item.writes.items()]
        for name, size, kind in parts:
            box = _box(svg, x, y, scale * size, CHART_BAR, f"part {kind}")
            SubElement(box, "title").text = f"{kind} {name}: {brief(size)} bytes a parameter"
            room = scale * size - 8
            words = next((w for w in (f"{name} {brief(size)}", name, brief(size)) if CHARACTER * len(w) <= room), "")
            if words:
                _text(svg, x + scale * size / 2, y + 18, words, "small middle on-part")
            x += scale * size
        _text(svg, x + 8, y + 19, f"{brief(item.bytes)} B", "name")
    return svg


def _svg(width: float, height: float, name: str, label: str) -> Element:
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    return Element("svg", {**size, "class": name, "role": "img", "aria-label": label})


def _box(svg: Element, x: float, y: float, width: float, height: float, kind: str) -> Element:
    place = {"x": f"{x:g}", "y": f"{y:g}", "width": f"{width:g}", "height": f"{height:g}"}
    return SubElement(svg, "rect", {**place, "rx": "4" if "part" not in kind else "0", "class": kind})


def _line(svg: Element, x: float, y: float, to_x: float, to_y: float, kind: str) -> None:
    ends = {"x1": f"{x:g}", "y1": f"{y:g}", "x2": f"{to_x:g}", "y2": f"{to_y:g}"}
    SubElement(svg, "line", {**ends, "class": kind})


def _arrow(svg: Element, x: float, y: float, tip: float, kind: str) -> None:
    _line(svg, x, y, x, tip - 6, f"arrow {kind}")
    SubElement(svg, "path", {"class": f"tip {kind}", "d": f"M{x:g} {tip:g} l-5 -9 h10 z"})


def _text(svg: Element, x: float, y: float, words: str, kind: str) -> None:
    SubElement(svg, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": kind}).text = words
