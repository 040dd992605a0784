r"""Show records on a screen so that nothing in them can act on it.

Every text of a record was chosen by somebody else. An actor's id may hold escape sequences that repaint the terminal,
line breaks that forge a row, or bidirectional controls that reverse what is read. `visible` turns each character
that does not simply print into its escape (``\x1b``, ``\u202e``); everything on a screen goes through it. JSON gets
the same characters as ``\uXXXX``, which is the same data.

A terminal gets a table that fits its width, with long values folded, never cut; a pipe gets one line a record with
whole values and no colour, for grep and awk.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, TextIO

from auditspan import attributes as names
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from auditspan_collector.record import AuditRecord

# Categories of the Unicode Character Database (UAX #44, table 12) that print as themselves; U+0020 is the only
# separator among them, because the others look like it.
_PRINTING: Final = frozenset("LMNPS")
_GAP: Final = 2  # spaces between columns; one where it is tight
SAMPLE_ROWS: Final = 200  # rows worth looking at before the widths are settled; the rest streams
_MIN_WIDTH: Final = 8
_WIDE: Final = 110  # columns from which a terminal has room for more

# Colour is never the only sign: the word stands beside the symbol.
_OUTCOMES: Final = {
    names.SUCCESS: ("\N{CHECK MARK}", "+", "green"),
    names.FAILURE: ("\N{BALLOT X}", "x", "red"),
    names.DENIED: ("\N{CIRCLED DIVISION SLASH}", "!", "bold magenta"),
}
_ORIGIN_MARKS: Final = {names.AUTHENTICATED: "", names.ASSERTED: "~"}
UNVERIFIED_MARK: Final = "?"
ORIGIN_LEGEND: Final = {
    "~": "~ asserted: a trusted service vouched for them",
    UNVERIFIED_MARK: "? unverified: nobody vouched for them",
}


def visible(text: str, encoding: str = "utf-8") -> str:
    """*text* with every character that does not simply print in *encoding* as its escape."""
    if text.isascii() and text.isprintable():
        return text
    shown = "".join(c if _prints(c) else _escape(c) for c in text)
    if unicodedata.category(shown[0]).startswith("M"):
        shown = _escape(shown[0]) + shown[1:]  # a combining mark would land on what stands before
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def to_json(value: Any, *, indent: int | None = None) -> str:
    r"""*value* as JSON; characters that don't print are written as ``\uXXXX``, which reads back as the same."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or _prints(c) else json.dumps(c)[1:-1] for c in text)


def _prints(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] in _PRINTING


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `reading.reads_the_store`; rich would end the process with status 1."""
        raise BrokenPipeError


@dataclass(frozen=True, slots=True)
class Screen:
    """Where output goes: *width* is None for a pipe or a file."""

    console: Console
    width: int | None

    @classmethod
    def of(cls, stream: TextIO) -> Screen:
        """The screen behind *stream*; colour as rich decides (a terminal, and no NO_COLOR)."""
        terminal = stream.isatty()
        console = _Console(
            file=stream, markup=False, highlight=False, emoji=False, force_terminal=terminal or None
        )
        return cls(console, console.width if terminal else None)

    @property
    def encoding(self) -> str:
        """What the stream can print."""
        return self.console.encoding

    @property
    def unicode(self) -> bool:
        """Whether symbols and lines outside ASCII print."""
        return self.encoding.lower().startswith("utf")

    @property
    def wide(self) -> bool:
        """Whether there is room for more columns than the most telling ones."""
        return self.width is None or self.width >= _WIDE

    def text(self, value: str, style: str = "") -> Text:
        """*value* made visible."""
        return Text(visible(value, self.encoding), style=style)

    def line(self, content: Text) -> None:
        """Print one line as it is; the caller has seen to its width."""
        if self.console.is_terminal:
            self.console.print(content, soft_wrap=True, crop=False)
        else:
            # Nothing to style, and a tenth of the time: a pipe may want a hundred thousand.
            self.console.file.write(content.plain + "\n")

    def outcome(self, outcome: str) -> Text:
        """*outcome* with its symbol and colour."""
        symbol, plain, style = _OUTCOMES.get(outcome, (UNVERIFIED_MARK, UNVERIFIED_MARK, "yellow"))
        return Text(f"{symbol if self.unicode else plain} {visible(outcome, self.encoding)}", style=style)

    def actor(self, record: AuditRecord) -> Text:
        """The actor with the mark of how they are known, and who acts for them."""
        mark = _ORIGIN_MARKS.get(record.actor_origin, UNVERIFIED_MARK)
        style = "bold yellow" if mark == UNVERIFIED_MARK else "bold"
        shown = Text(mark + visible(record.actor_id, self.encoding), style=style)
        if record.actor_delegate:
            shown.append(f" via {visible(record.actor_delegate, self.encoding)}", style="not bold")
        return shown


def target(record: AuditRecord) -> str:
    """What was acted on, as ``type:id``; as `auditspan search --target` takes it."""
    return f"{record.target_type}:{record.target_id}" if record.target_type else record.target_id


def origin_legend(origins: Iterable[str]) -> list[str]:
    """What the marks of *origins* mean; empty when none is marked."""
    marks = {_ORIGIN_MARKS.get(origin, UNVERIFIED_MARK) for origin in origins}
    return [meaning for mark, meaning in ORIGIN_LEGEND.items() if mark in marks]


def duration(nanoseconds: int) -> str:
    """*nanoseconds* in the unit that a person would choose, three digits."""
    for limit, unit_ns, unit in ((10**6, 10**3, "us"), (10**9, 10**6, "ms"), (120 * 10**9, 10**9, "s")):
        if 0 < abs(nanoseconds) < limit:
            value = nanoseconds / unit_ns
            return f"{value:.0f} {unit}" if abs(value) >= 99.95 else f"{value:.3g} {unit}"
    if not nanoseconds:
        return "0 ms"
    minutes, seconds = divmod(round(nanoseconds / 10**9), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


@dataclass(frozen=True, slots=True)
class Heading:
    """A column's *title*; *flexible* when it may be folded to fit; *usual* is its width while nothing is known."""

    title: str
    flexible: bool = False
    usual: int = 0


class Table:
    """Lines of cells under headings, printed one by one; their widths are settled by the rows in *sample*.

    With *more_to_come* no column is narrower than usual. A later, wider value is folded in a terminal; in a pipe it
    shifts the rest of its line.
    """

    def __init__(
        self,
        screen: Screen,
        headings: Sequence[Heading],
        sample: Sequence[Sequence[Text]],
        *,
        more_to_come: bool = False,
    ) -> None:
        self._screen = screen
        self._headings = headings
        natural = [
            max(
                [
                    heading.usual * more_to_come,
                    cell_len(heading.title),
                    *(row[number].cell_len for row in sample),
                ]
            )
            for number, heading in enumerate(headings)
        ]
        between = len(natural) - 1
        roomy = screen.width is None or sum(natural) + _GAP * between <= screen.width
        self._gap = " " * (_GAP if roomy else 1)
        room = None if screen.width is None else screen.width - len(self._gap) * between
        self._widths = _fitted(natural, [heading.flexible for heading in headings], room)

    def header(self) -> None:
        """Print the titles."""
        self.row([Text(heading.title, style="bold underline") for heading in self._headings])

    def row(self, cells: Sequence[Text]) -> None:
        """Print one row; in a terminal it may take several lines, nothing is cut off."""
        if self._screen.width is None:
            columns = [[cell] for cell in cells]
        else:
            columns = [list(fold(cell, width)) for cell, width in zip(cells, self._widths, strict=True)]
        for parts in zip_longest(*columns, fillvalue=Text()):
            line = Text()
            for part, width in zip(parts, self._widths, strict=True):
                line.append_text(part)
                line.append(" " * max(0, width - part.cell_len) + self._gap)
            line.rstrip()
            self._screen.line(line)


def _fitted(natural: Sequence[int], flexible: Sequence[bool], room: int | None) -> list[int]:
    """Widths that sum up to *room* or less: the widest flexible column gives way first, none below a readable minimum."""
    widths = list(natural)
    while room is not None and sum(widths) > room:
        giving = [n for n, gives in enumerate(flexible) if gives and widths[n] > _MIN_WIDTH]
        if not giving:
            break
        widths[max(giving, key=lambda n: widths[n])] -= 1
    return widths


def fold(content: Text, width: int) -> Iterator[Text]:
    """*content*, one line, in lines of at most *width* cells (2 or more: some characters take two); nothing is lost.

    A break comes behind the last space or punctuation mark of a line, unless that leaves more than half of it empty.
    """
    cuts: list[int] = []
    begin = used = 0
    for position, character in enumerate(content.plain):
        cells = cell_len(character)
        if used + cells > width:
            kept = re.match(r".*[\s@:/,;._-]", content.plain[begin:position])
            begin = begin + kept.end() if kept and kept.end() * 2 > position - begin else position
            cuts.append(begin)
            used = cell_len(content.plain[begin:position])
        used += cells
    yield from content.divide(cuts)
