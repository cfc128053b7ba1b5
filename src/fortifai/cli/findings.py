"""Findings of an audit in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fortifai.cli.common import out_console, say
from fortifai.report.text import neutral

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fortifai.audit import Audit, Finding
    from fortifai.audit.grown import Grown

_GROWN, _GROWN_SOUND = 15, 5
"""n-grams of what grew in a terminal, with evidence of collapse and without; the page has all."""


def show(found: Audit, grown: Sequence[Grown] = ()) -> None:
    """A headline, a table, what grew, what to know, and last the verdict and what to do next."""
    from fortifai.report.audit import headline

    style = "bold red" if found.collapsed else "bold green" if found.comparable else "bold yellow"
    out_console.print(Text(neutral(headline(found)), style=style))
    out_console.print(Text(found.sampled, style="dim"), soft_wrap=True)
    # of a source by itself what is judged; the page has all
    shown = [each for each in found.findings if each.level is not None or not each.source]
    out_console.print(_table(shown))
    show_grown(grown, _GROWN if found.collapsed else _GROWN_SOUND)
    for line in found.remarks:
        out_console.print(Text(neutral(line), style="dim"), soft_wrap=True)
    for line in found.not_measured:
        out_console.print(Text(f"not measured: {line}", style="dim"), soft_wrap=True)
    # at the end, which stands above the next prompt
    say(neutral(found.verdict))
    say(f"Next: {neutral(found.next_step)}")


def _table(findings: Sequence[Finding]) -> Table:
    from fortifai.report.audit import row

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("measure", "value", "ref.", "difference, 95 %", "evidence if", ""):
        left, wraps = name in ("measure", ""), name == "measure"
        table.add_column(name, justify="left" if left else "right", no_wrap=not wraps)
    for heading, group in _groups(findings):
        table.add_row(Text(neutral(heading), style="bold dim", overflow="fold"))
        for each in group:
            line = row(each)
            words = ("yes", "red") if each.evidence else ("no", "green")
            table.add_row(
                # padded, so that a title that wraps stays indented
                Padding(Text(line["title"], overflow="fold"), (0, 0, 0, 2)),
                line["value"],
                line["reference"],
                f"{line['difference']}  {line['interval']}".strip(),
                line["level"].replace("below ", "< ").replace("above ", "> "),
                Text(words[0], style=words[1]) if line["judged"] else Text(""),
            )
    return table


def _groups(findings: Sequence[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    for key in dict.fromkeys((each.source, each.against) for each in findings):
        source, against = key
        heading = f"against {against}" if against else "as it is"
        heading += f", source {source}" if source else ""
        yield heading, [each for each in findings if (each.source, each.against) == key]


def show_grown(grown: Sequence[Grown], most: int) -> None:
    """What grew against the reference, in the whole text."""
    whole = [each for each in grown if not each.source][:most]
    if not whole:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what grew", overflow="fold", max_width=38)
    for name in ("times", "expected", "documents", "z"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in whole:
        table.add_row(
            Text(neutral(each.words)),
            f"{each.count:,}",
            f"{each.expected:,.1f}",
            f"{each.documents:,}",
            f"{each.z:.1f}",
        )
    out_console.print()
    out_console.print(table)
    out_console.print()
