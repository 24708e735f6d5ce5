"""A flame graph as SVG: boxes as wide as their time, what they are made of below them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 1200, 26  # of the whole and of a level, pixels
LETTER = 6.1  # width of one, about


@dataclass
class Frame:
    """`milliseconds` of its own are those of `parts` unless it has none."""

    name: str
    colour: str
    milliseconds: float = 0.0
    parts: dict[str, Frame] = field(default_factory=dict)

    def add(self, path: list[tuple[str, str]], milliseconds: float) -> None:
        """Puts time in at the end of `path`, names and colours from below this frame on."""
        self.milliseconds += milliseconds
        if path:
            (name, colour), *rest = path
            self.parts.setdefault(name, Frame(name, colour)).add(rest, milliseconds)

    @property
    def depth(self) -> int:
        return 1 + max((part.depth for part in self.parts.values()), default=0)


def draw(frames: list[Frame], caption: str) -> str:
    """Each of `frames` as a graph of the same width, one below the other; `caption` at the end."""
    drawn: list[str] = []
    y = 10.0
    for frame in frames:
        _draw(drawn, frame, 10, y, WIDTH - 20, frame.milliseconds)
        y += frame.depth * HEIGHT + 22
    drawn.append(f'<text x="10" y="{y + 4:.0f}" fill="#555">{escape(caption)}</text>')
    height = y + 18
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _draw(drawn: list[str], frame: Frame, x: float, y: float, width: float, whole: float) -> None:
    share = 100 * frame.milliseconds / whole
    told = f"{frame.name} · {frame.milliseconds:.3g} ms"
    room = int((width - 6) / LETTER)
    short = f"{frame.name[: room - 1]}…" if room > 3 else ""
    label = next((text for text in (told, frame.name) if len(text) <= room), short)
    drawn.append(
        f"<g><title>{escape(told)}, {share:.1f} %</title>"
        f'<rect x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{HEIGHT - 1}" '
        f'fill="{frame.colour}" stroke="#fff" stroke-width="0.6"/>'
        + (f'<text x="{x + 4:.1f}" y="{y + 17:.0f}">{escape(label)}</text>' if label else "")
        + "</g>"
    )
    # The dearest first, as the order in time is XLA's and hardly one of the parts.
    for part in sorted(frame.parts.values(), key=lambda part: -part.milliseconds):
        its_width = width * part.milliseconds / frame.milliseconds
        if its_width >= 0.5:
            _draw(drawn, part, x, y + HEIGHT, its_width, whole)
        x += its_width
