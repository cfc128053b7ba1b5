"""The commands `fortifai kr build`, `check` and `score`: Knowledge Retention questions."""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fortifai import files
from fortifai.cli.common import (
    FOUND,
    BosOption,
    Column,
    Debug,
    Device,
    Json,
    bars,
    err_console,
    load_model,
    out_console,
    read_corpus,
    say,
)
from fortifai.errors import InputError, RunFailed

if TYPE_CHECKING:
    from fortifai.data.questions import Question
    from fortifai.questions.check import Report
    from fortifai.questions.llm import Listen, Written
    from fortifai.questions.swap import Swapped
    from fortifai.stats.sample import Share

app = typer.Typer(
    name="kr",
    help="Knowledge Retention questions: write, check, and put them to a model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TextFile = typer.Argument(
    metavar="TEXT", help="A text file or a glob; .jsonl, .ndjson, .json, .parquet too."
)


class Writer(enum.StrEnum):
    """Who writes the questions."""

    swap = "swap"
    llm = "llm"


_SETTINGS = ("model", "base_url", "key_env", "timeout", "temperature", "max_tokens")
_LIMITS = {
    "max_calls": "calls",
    "max_cost": "cost",
    **{name: name for name in ("price_in", "price_out", "tries", "workers")},
}
_OF_LLM = {*_SETTINGS, *_LIMITS, "journal", "paragraphs"}
"""Options of `build` that the writer `llm` alone has: its settings, its limits by their fields."""


@app.command()
def build(
    ctx: typer.Context,
    text: Annotated[str, TextFile],
    out: Annotated[Path, typer.Option(metavar="Q.jsonl", help="Where the questions go.")],
    writer: Annotated[
        Writer, typer.Option(help="swap: by rules, without a network. llm: by a language model.")
    ] = Writer.swap,
    per_paragraph: Annotated[int, typer.Option(min=1, help="Most questions a paragraph.")] = 5,
    column: Column = "text",
    seed: Annotated[int | None, typer.Option(help="swap: of the choice; 0 if not given.")] = None,
    model: Annotated[str | None, typer.Option(help="llm: name of the model.")] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="llm: the endpoint; OpenAI's if not given.")
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="llm: variable with the key; OPENAI_API_KEY."),
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="llm: file of all answers; OUT.journal.jsonl.")
    ] = None,
    paragraphs: Annotated[
        int | None, typer.Option(min=1, help="llm: only so many, spread over the text.")
    ] = None,
    max_calls: Annotated[
        int | None, typer.Option(min=0, help="llm: most calls, the journal's included.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, metavar="USD", help="llm: most that may be spent.")
    ] = None,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="llm: USD for a million tokens of prompt.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="llm: USD for a million tokens of answer.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="llm: longest answer; 4096.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="llm: the endpoint's own if not given.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, help="llm: seconds to wait for an answer; 120.")
    ] = None,
    tries: Annotated[
        int | None, typer.Option(min=1, help="llm: failures in a row that end it; 5.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="llm: calls at a time; 4.")] = None,
    debug: Debug = False,
) -> None:
    """Write questions on a text."""
    given = {name: value for name, value in ctx.params.items() if value is not None}
    foreign = _OF_LLM if writer is Writer.swap else {"seed"}
    if odd := [name for name in given if name in foreign]:
        names = ", ".join("--" + name.replace("_", "-") for name in odd)
        other = "llm" if writer is Writer.swap else "swap"
        raise InputError(
            f"{names} with --writer {writer.value}, which knows nothing of it; leave it out, or "
            f"use --writer {other}"
        )
    _check_out(out, "--out", text)
    if writer is Writer.swap:
        _check_new(out, "--out")
        from fortifai.questions import swap

        made = swap.write(read_corpus(text, column), per_paragraph=per_paragraph, seed=seed or 0)
        _save(out, made.questions)
        _show_swapped(made, out)
        return
    if model is None:
        raise InputError("--writer llm needs --model, the name of the model at the endpoint")
    with bars() as tick:
        written = _ask(text, out, given, functools.partial(tick, "paragraphs"))
    if written.questions:
        _save(out, written.questions)
    _show_written(written, out)


def _ask(text: str, out: Path, given: Mapping[str, Any], listen: Listen) -> Written:
    from fortifai.questions import llm
    from fortifai.questions.budget import Limits
    from fortifai.questions.endpoint import Settings

    settings = Settings(**{name: given[name] for name in _SETTINGS if name in given})
    limits = Limits(**{field: given[name] for name, field in _LIMITS.items() if name in given})
    journal = Path(given.get("journal", f"{out}.journal.jsonl"))
    _check_out(journal, "--journal", text)
    _check_apart(journal, "--journal", out)
    if not journal.exists():
        _check_new(out, "--out")  # with its journal, it may be this run's own
    return llm.write(
        read_corpus(text, given["column"]),
        settings,
        journal,
        limits=limits,
        per_paragraph=given["per_paragraph"],
        only=given.get("paragraphs"),
        replaces=out,
        listen=listen,
    )


@app.command()
def check(
    questions: Annotated[
        Path, typer.Argument(metavar="Q.jsonl", help="Questions: .json or .jsonl.")
    ],
    text: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT]", help="Their text; without it locations stay unchecked."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a model that was not trained on the text."),
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Write the sound questions to --out.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --drop: where they go.")] = None,
    findings: Annotated[
        Path | None, typer.Option(help="Write every finding here, a JSON line each.")
    ] = None,
    column: Column = "text",
    bos: BosOption = None,
    debug: Debug = False,
) -> None:
    """Report what is wrong with questions. Exit code 0: nothing; 3: something; 2: bad input."""
    from fortifai.data.questions import read_rows
    from fortifai.questions import check as checking

    if drop != (out is not None):
        raise InputError("--drop and --out go together; give both or none")
    if bos is not None and model is None:
        raise InputError("--bos says how a model reads, and none is given; give --model")
    for path, name in ((out, "--out"), (findings, "--findings")):
        if path is not None:
            _check_out(path, name, text, questions)
    if out is not None and findings is not None:
        _check_apart(findings, "--findings", out)
    _check_new(out, "--out")
    _check_new(findings, "--findings")
    rows = read_rows(questions)
    corpus = None if text is None else read_corpus(text, column)
    scorer = None if model is None else load_model(model, None, bos)
    report = checking.check(rows, corpus=corpus, model=scorer, name=model or "")
    _show_report(report, rows, questions.name)
    if findings is not None:
        _write_lines(
            findings,
            [{"row": f.row, "rule": f.rule, "why": f.why} for f in report.findings],
        )
    if out is not None:
        faulty = report.faulty()
        kept = [q for row, q in enumerate(rows, start=1) if row not in faulty]
        if kept:
            _save(out, kept)
            say(f"{len(kept):,} of {len(rows):,} rows written to {out}")
        else:
            say(f"none of {len(rows):,} rows is sound; {out} is not written")
    if not report.clean:
        raise typer.Exit(FOUND)


@app.command()
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder, or a hub id.")],
    questions: Annotated[
        Path, typer.Argument(metavar="Q.jsonl", help="Questions: .json or .jsonl.")
    ],
    device: Device = None,
    bos: BosOption = None,
    answers: Annotated[
        Path | None, typer.Option(help="Write each question's log-probabilities here, as JSONL.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what a model knows: how often it finds the true sentence likelier."""
    from fortifai.data.questions import read_questions
    from fortifai.evals.kr_test import VARIANTS, kr_test, table
    from fortifai.stats.sample import share

    if answers is not None:
        _check_out(answers, "--answers", None, questions)
    _check_new(answers, "--answers")
    asked, notes = read_questions([questions], root=Path.cwd())
    for note in notes:
        err_console.print(Text(f"note: {note}"), soft_wrap=True)
    result = kr_test(load_model(model, device, bos), asked)
    shares = {f"kr.{v}": share(result.right(v)) for v in VARIANTS}
    if answers is not None:
        rows = table(result, [0] * len(asked))
        _write_lines(answers, [{k: x for k, x in row.items() if k != "split"} for row in rows])
    if as_json:
        typer.echo(json.dumps({"model": model, "questions": len(asked), **_records(shares)}))
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("measure", "right", "95 % interval", "questions"):
        shown.add_column(name, justify="left" if name == "measure" else "right")
    for measure, found in shares.items():
        interval = f"{found.low:.1%} to {found.high:.1%}"
        shown.add_row(measure, f"{found.value:.1%}", interval, f"{found.n:,}")
    out_console.print(shown)
    say("chance is 50 %; mean: log p per token, sum: of the whole sentence")


def _records(shares: Mapping[str, Share]) -> dict[str, dict[str, float]]:
    return {
        name: {"value": found.value, "low": found.low, "high": found.high}
        for name, found in shares.items()
    }


# --- what the commands share ------------------------------------------------------------------


def _check_out(path: Path, option: str, *inputs: str | Path | None) -> None:
    """Refuse what cannot be written, or not read again by its name, before any work."""
    from fortifai.file_formats import file_format

    told = file_format(path)
    if told.packed or told.kind not in ("text", "json", "jsonl"):
        raise InputError(f"{option} is {str(path)!r}; JSON lines are written, call it .jsonl")
    if path.is_dir() or not path.name:
        raise InputError(f"{option} is {str(path)!r}, a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"{option} is {str(path)!r}, and there is no folder {str(path.parent)!r}; make it, or "
            "give another"
        )
    for other in inputs:
        if other is not None and path.exists() and Path(other).exists() and path.samefile(other):
            raise InputError(f"{option} is {str(path)!r}, which is read; give another name")


def _check_new(path: Path | None, option: str) -> None:
    """Refuse to replace a file: what was written there may have cost days, or dollars."""
    if path is not None and path.exists():
        raise InputError(
            f"{option} is {str(path)!r}, which is there already; give another name, or remove the "
            "file"
        )


def _check_apart(path: Path, option: str, out: Path) -> None:
    same = path.resolve() == out.resolve()
    if same or (path.exists() and out.exists() and path.samefile(out)):
        raise InputError(f"{option} and --out are both {str(out)!r}; give two names")


def _save(path: Path, questions: Sequence[Question]) -> None:
    from fortifai.data.questions import write_questions

    with files.writing("questions", path, "another file"):
        write_questions(path, questions)


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with files.writing("rows", path, "another file"):
        files.write_whole(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def _show_swapped(made: Swapped, out: Path) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what is swapped")
    table.add_column("questions", justify="right")
    for kind, count in made.kinds.items():
        table.add_row(kind, f"{count:,}")
    out_console.print(table)
    say(
        f"{len(made.questions):,} questions on {made.asked:,} of {made.paragraphs:,} paragraphs "
        f"written to {out}"
    )


def _show_written(made: Written, out: Path) -> None:
    if made.rejected:
        thrown = ", ".join(f"{why}: {count:,}" for why, count in made.rejected.items())
        say(f"thrown away: {thrown}")
    if made.given_up:
        say(f"{made.given_up:,} paragraphs got no useful answer")
    spent = f", {made.cost:.2f} USD" if made.cost else ""
    say(
        f"{made.new_calls:,} calls now, {made.calls:,} in all; {made.tokens[0]:,} tokens in, "
        f"{made.tokens[1]:,} out{spent}"
    )
    if made.over:
        say(f"the endpoint does not keep --max-tokens: an answer has {made.over:,} tokens")
    where = f" written to {out}" if made.questions else f"; {out} is not written"
    say(
        f"{len(made.questions):,} questions on {made.done:,} of {made.paragraphs:,} paragraphs"
        f"{where}"
    )
    if made.stopped:
        raise RunFailed(
            f"{made.stopped} with {made.paragraphs - made.done:,} paragraphs left; the same "
            "command with a higher limit goes on from here"
        )


def _show_report(report: Report, rows: Sequence[Question], name: str) -> None:
    from fortifai.questions.check import RULES

    say(f"{name}: {report.rows:,} rows, {report.different:,} different questions")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rule", no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("what it means, and the first one")
    for rule, meaning in RULES.items():
        found = [f for f in report.findings if f.rule == rule]
        if rule == "location" and not report.located:
            table.add_row(rule, "-", "not checked: no text was given")
            continue
        shown = Text(meaning)
        if found:
            first = rows[found[0].row - 1]
            shown.append(f"\nrow {found[0].row:,}, {found[0].why}: ", style="yellow")
            shown.append(f"{first.context} ... {first.true} / {first.false}"[:240], style="dim")
        table.add_row(rule, f"{len(found):,}", shown)
    out_console.print(table)
    tells = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("told apart by", "right", "95 % interval", ""):
        tells.add_column(heading)
    for tell in report.tells:
        interval = f"{tell.share.low:.1%} to {tell.share.high:.1%}"
        verdict = Text(tell.problem, style="yellow") if tell.problem else Text("as chance")
        tells.add_row(Text(tell.name), f"{tell.share.value:.1%}", interval, verdict)
    out_console.print(tells)
