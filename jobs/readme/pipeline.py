"""Draw the pipeline at the top of the README: ``docs/pipeline.svg``.

Two rows of cards: how the training data is made (section 3.1 of the paper), and how the
editor is trained and used (sections 3.2 and 4). Each card is a notebook and a room of
``ip2p_lib``. The drawing has no images inside and names no font that must be fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ip2p_lib.config import ROOT
from ip2p_lib.files import write_bytes
from ip2p_lib.notebook.style import COLOURS

DRAWING = ROOT / "docs" / "pipeline.svg"
BLUE, ORANGE, GREEN, *_ = COLOURS
INK, GREY, PALE, LINE = "#1f2933", "#667380", "#f5f7fa", "#c9d1da"
FONTS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
WIDTH, HEIGHT = 960, 540
CARD, GAP, LEFT = (172, 196), 16, 18  # a card's width and height, between, margin
ROWS = (48, 322)  # top of each row of cards


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float = 11,
    colour: str = INK,
    weight: int = 400,
    anchor: str = "middle",
) -> str:
    """One line of text; ``_{...}`` in it is a subscript."""
    head, *rest = escape(words).split("_{")
    parts = [head]
    for piece in rest:
        low, _, high = piece.partition("}")
        down = f'<tspan dy="3" font-size="{size * 0.75:g}">{low}</tspan>'
        parts.append(f'{down}<tspan dy="-3">{high}</tspan>' if high else down)
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" '
        f'font-weight="{weight}" text-anchor="{anchor}">{"".join(parts)}</text>'
    )


def box(
    x: float, y: float, w: float, h: float, fill: str, *, edge: str = "none", r: int = 4
) -> str:
    """A rectangle with rounded corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r}" '
        f'fill="{fill}" stroke="{edge}"/>'
    )


def arrow(points: Sequence[tuple[float, float]], colour: str = GREY) -> str:
    """A line through points that ends in an arrowhead."""
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    head = "blue" if colour == BLUE else "orange" if colour == ORANGE else "grey"
    return (
        f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6" '
        f'stroke-linejoin="round" marker-end="url(#{head})"/>'
    )


def scene(x: float, y: float, size: float, flower: str, *, night: bool = False) -> str:
    """A drawn meadow of 64 units, scaled, with a sunflower, a rose or nothing."""
    sky, hill, field = ("#8ec3f2", "#9fce84", "#6aa84f")
    sun, moon = '<circle cx="49" cy="13" r="6" fill="#ffe27a"/>', ""
    if night:
        sky, hill, field = ("#1c2b57", "#2f5a4a", "#244a38")
        sun = '<circle cx="49" cy="13" r="5.5" fill="#f4f1da"/>'
        moon = '<g fill="#f4f1da"><circle cx="12" cy="10" r="1"/>'
        moon += '<circle cx="27" cy="17" r="1"/><circle cx="37" cy="7" r="1"/></g>'
    stem = '<path d="M32 42 V56 M32 52 q6 -1 8 -5" stroke="#3f7d2c" fill="none" '
    stem += 'stroke-width="2.6" stroke-linecap="round"/>'
    petals = "".join(
        f'<ellipse cx="32" cy="23" rx="3.4" ry="6.5" transform="rotate({a} 32 33)"/>'
        for a in range(0, 360, 36)
    )
    drawn = {
        "sunflower": f'{stem}<g fill="#f6b21b">{petals}</g>'
        '<circle cx="32" cy="33" r="7.2" fill="#6b4226"/>',
        "rose": f'{stem}<path d="M21 27 q0 17 11 17 q11 0 11 -17 q-5 3 -7 -3 q-4 5 -8 '
        '0 q-2 6 -7 3z" fill="#cf2437"/><path d="M26 31 q6 7 12 0" fill="none" '
        'stroke="#8f1424" stroke-width="1.6"/>',
    }
    return (
        f'<g transform="translate({x:g} {y:g}) scale({size / 64:g})">'
        f'<g clip-path="url(#frame)"><rect width="64" height="64" fill="{sky}"/>'
        f'{sun}{moon}<path d="M0 40 Q16 28 34 38 T64 34 V64 H0z" fill="{hill}"/>'
        f'<path d="M0 48 Q20 42 40 48 T64 46 V64 H0z" fill="{field}"/>'
        f"{drawn.get(flower, '')}</g></g>"
    )


def mark(x: float, y: float, good: bool) -> str:
    """A tick or a cross of about ten units."""
    path = "M0 5 L4 9 L11 0" if good else "M1 0 L10 9 M10 0 L1 9"
    return (
        f'<path transform="translate({x:g} {y:g})" d="{path}" fill="none" '
        f'stroke="{GREEN if good else ORANGE}" stroke-width="2.4" '
        'stroke-linecap="round" stroke-linejoin="round"/>'
    )


def captions(x: float, y: float) -> str:
    """Lines of a list of captions."""
    lines = ("a sunflower in a meadow", "two cats at night", "a castle by a lake")
    parts = []
    for i, line in enumerate(lines):
        parts.append(box(x + 14, y + 4 + 31 * i, 144, 24, "white", edge=LINE))
        parts.append(text(x + 22, y + 20 + 31 * i, line, size=10.5, anchor="start"))
    return "".join(parts)


def triplet(x: float, y: float) -> str:
    """Caption, instruction and edited caption."""
    lines = (
        ("a sunflower in a meadow", "white", INK),
        ("replace it with a rose", BLUE, "white"),
        ("a rose in a meadow", "white", INK),
    )
    parts = []
    for i, (line, fill, colour) in enumerate(lines):
        parts.append(box(x + 14, y + 4 + 31 * i, 144, 24, fill, edge=LINE))
        parts.append(text(x + 86, y + 20 + 31 * i, line, size=10.5, colour=colour))
    return "".join(parts)


def rendering(x: float, y: float) -> str:
    """Two images that share attention maps."""
    link = f'<path d="M{x + 49:g} {y + 14:g} q37 -20 74 0" fill="none" stroke="{BLUE}" '
    link += 'stroke-width="1.6" stroke-dasharray="4 3"/>'
    return (
        link
        + scene(x + 16, y + 18, 66, "sunflower")
        + scene(x + 90, y + 18, 66, "rose")
        + text(x + 86, y + 97, "same noise, shared attention", size=10, colour=GREY)
    )


def filtering(x: float, y: float) -> str:
    """Candidate pairs, kept or dropped."""
    rows = (("rose", False, True), ("", True, False), ("rose", False, True))
    parts = []
    for i, (flower, night, good) in enumerate(rows):
        top = y + 1 + 34 * i
        parts.append(scene(x + 34, top, 30, "sunflower"))
        parts.append(scene(x + 70, top, 30, flower, night=night))
        parts.append(mark(x + 118, top + 10, good))
    return "".join(parts)


def pairs(x: float, y: float) -> str:
    """A pile of pairs with their instruction."""
    parts = [
        box(x + 26 - 6 * i, y + 6 * i, 132, 76, "white", edge=LINE) for i in (0, 1)
    ]
    parts.append(box(x + 14, y + 12, 132, 84, "white", edge=LINE))
    parts.append(scene(x + 22, y + 18, 54, "sunflower"))
    parts.append(scene(x + 84, y + 18, 54, "rose"))
    parts.append(text(x + 80, y + 88, "replace it with a rose", size=10, colour=BLUE))
    return "".join(parts)


def surgery(x: float, y: float) -> str:
    """Eight input channels, of which four are new."""
    parts = []
    for i in range(8):
        fill, edge = ("#cfe2f3", BLUE) if i < 4 else ("#fbe3d8", ORANGE)
        gap = 0 if i < 4 else 8
        parts.append(box(x + 52, y + 2 + 11 * i + gap, 42, 8, fill, edge=edge, r=2))
    parts.append(text(x + 32, y + 26, "z_{t}", size=13, colour=BLUE))
    parts.append(text(x + 32, y + 78, "c_{I}", size=13, colour=ORANGE))
    parts.append(arrow([(x + 98, y + 48), (x + 112, y + 48)]))
    parts.append(box(x + 116, y + 24, 42, 48, "white", edge=INK))
    parts.append(text(x + 137, y + 52, "conv_in", size=10))
    return "".join(parts)


def training(x: float, y: float) -> str:
    """The U-Net between its inputs and the predicted noise."""
    net = "l20 14 v-10 l20 -14 v56 l-20 -14 v-10 l-20 14 z"
    parts = [f'<path d="M{x + 66:g} {y + 18:g} {net}" fill="#cfe2f3" stroke="{BLUE}"/>']
    for i, name in enumerate(("z_{t}", "c_{I}", "c_{T}")):
        colour = (BLUE, ORANGE, GREEN)[i]
        parts.append(text(x + 26, y + 26 + 24 * i, name, size=13, colour=colour))
        parts.append(arrow([(x + 38, y + 22 + 24 * i), (x + 61, y + 33 + 12 * i)]))
    parts.append(arrow([(x + 110, y + 45), (x + 132, y + 45)]))
    parts.append(text(x + 147, y + 50, "ε_{θ}", size=14))
    parts.append(text(x + 86, y + 99, "loss ‖ε − ε_{θ}(z_{t}, t, c_{I}, c_{T})‖²"))
    return "".join(parts)


def guidance(x: float, y: float) -> str:
    """Equation 3: two scaled steps from the unconditional prediction."""
    start, middle, end = (x + 22, y + 82), (x + 72, y + 62), (x + 104, y + 18)
    parts = [arrow([start, middle], ORANGE), arrow([middle, end], BLUE)]
    parts += [
        f'<circle cx="{p[0]:g}" cy="{p[1]:g}" r="3" fill="{INK}"/>'
        for p in (start, middle)
    ]
    parts.append(text(x + 14, y + 98, "ε(∅, ∅)", size=10.5, anchor="start"))
    parts.append(text(x + 82, y + 72, "ε(c_{I}, ∅)", size=10.5, anchor="start"))
    parts.append(text(x + 110, y + 14, "ε(c_{I}, c_{T})", size=10.5, anchor="start"))
    parts.append(text(x + 40, y + 62, "s_{I}", size=13, colour=ORANGE))
    parts.append(text(x + 78, y + 38, "s_{T}", size=13, colour=BLUE))
    return "".join(parts)


def editing(x: float, y: float) -> str:
    """An input, an instruction, an edit."""
    return (
        scene(x + 12, y + 18, 62, "sunflower")
        + arrow([(x + 78, y + 49), (x + 93, y + 49)])
        + scene(x + 98, y + 18, 62, "sunflower", night=True)
        + text(x + 86, y + 97, "make it night", colour=BLUE)
    )


def evaluation(x: float, y: float) -> str:
    """The trade-off of figure 8: image similarity against directional similarity."""
    points = ((30, 14), (62, 20), (92, 34), (118, 56))
    path = " L".join(f"{x + 14 + a:g} {y + b:g}" for a, b in points)
    dots = "".join(
        f'<circle cx="{x + 14 + a:g}" cy="{y + b:g}" r="3" fill="{BLUE}"/>'
        for a, b in points
    )
    return (
        arrow([(x + 26, y + 84), (x + 158, y + 84)])
        + arrow([(x + 26, y + 84), (x + 26, y + 2)])
        + f'<path d="M{path}" fill="none" stroke="{BLUE}" stroke-width="2"/>{dots}'
        + text(x + 92, y + 98, "follows the instruction", size=10, colour=GREY)
        + f'<g transform="rotate(-90 {x + 17:g} {y + 44:g})">'
        + text(x + 17, y + 44, "keeps the image", size=10, colour=GREY)
        + "</g>"
    )


# Title, line below it, drawing; the first and last of the first row are no notebook.
CARDS = (
    (
        ("captions", "any list of sentences", captions),
        ("01 triplets", "a language model writes edits", triplet),
        ("02 rendering", "Prompt-to-Prompt makes pairs", rendering),
        ("03 filtering", "CLIP keeps the good pairs", filtering),
        ("training pairs", "a dataset to read and share", pairs),
    ),
    (
        ("04 surgery", "four new channels, all zero", surgery),
        ("05 training", "conditioning dropout, EMA", training),
        ("06 guidance", "two scales, equation 3", guidance),
        ("07 editing", "an image and a sentence", editing),
        ("08 evaluation", "both similarities, baselines", evaluation),
    ),
)
HEADINGS = (  # row, column, text
    (0, 0, "Make the training data (section 3.1)"),
    (1, 0, "Train the editor (section 3.2)"),
    (1, 2, "Edit and measure (sections 3.2.1 and 4)"),
)


def card(row: int, column: int) -> str:
    """One card: title, one line, drawing."""
    title, line, picture = CARDS[row][column]
    x, y = LEFT + column * (CARD[0] + GAP), ROWS[row]
    plain = not title[0].isdigit()
    return "".join(
        (
            box(x, y, *CARD, "white" if plain else PALE, edge=LINE, r=8),
            text(x + CARD[0] / 2, y + 25, title, size=14, weight=600),
            text(x + CARD[0] / 2, y + 43, line, size=10.5, colour=GREY),
            picture(x, y + 68),
        )
    )


def draw() -> str:
    """The drawing as SVG."""
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" '
        f'markerHeight="6" orient="auto"><path d="M0 0 L8 4 L0 8z" fill="{colour}"/>'
        "</marker>"
        for name, colour in (("grey", GREY), ("blue", BLUE), ("orange", ORANGE))
    )
    parts = [box(0, 0, WIDTH, HEIGHT, "white", r=10)]
    for row, column, heading in HEADINGS:
        place = (LEFT + column * (CARD[0] + GAP), ROWS[row] - 16)
        parts.append(text(*place, heading, size=13, weight=600, anchor="start"))
    for row in (0, 1):
        for column in range(len(CARDS[row])):
            parts.append(card(row, column))
            x, y = LEFT + column * (CARD[0] + GAP), ROWS[row] + CARD[1] / 2
            if column:
                parts.append(arrow([(x - GAP + 1, y), (x - 1, y)]))
    right, second = LEFT + 4.5 * CARD[0] + 4 * GAP, LEFT + 1.5 * CARD[0] + GAP
    below, above = ROWS[0] + CARD[1], ROWS[1]
    turn = below + 26
    parts.append(
        arrow([(right, below), (right, turn), (second, turn), (second, above - 1)])
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="{FONTS}" role="img" '
        'aria-label="The stages of InstructPix2Pix, one card a notebook">'
        f'<defs>{heads}<clipPath id="frame"><rect width="64" height="64" rx="5"/>'
        f"</clipPath></defs>{''.join(parts)}</svg>\n"
    )


def draw_pipeline(path: Path = DRAWING) -> Path:
    """Write the drawing."""
    return write_bytes(path, draw().encode())
