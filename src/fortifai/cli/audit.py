"""The commands `fortifai audit` and `fortifai threshold`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

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
from fortifai.cli.findings import show
from fortifai.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fortifai.audit import Audit, Suggestion
    from fortifai.data.tokens import Bos
    from fortifai.evals.benchmarks import Suite
    from fortifai.evals.coverage import Coverage
    from fortifai.lab.measures import Score
    from fortifai.models.causal_lm import CausalLM

Seed = Annotated[int, typer.Option(min=0, help="Of the sampling.")]
Tokens = Annotated[
    int | None,
    typer.Option(min=8, help="Tokens of a prompt and of what follows; 64 if there is room."),
]

MOST_REAL = 1 / 3
"""Share of the real text that a threshold may drop without a warning."""


def audit(
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A corpus, or the human text that MODEL should know: .txt, .jsonl, .json, "
            ".parquet, perhaps .gz or .zst; a quoted glob; hub:OWNER/NAME:CONFIG@SPLIT. May be "
            "repeated.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model's folder, or a hub id.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL0", help="The model that it came from.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="The reference of a corpus. May be repeated."),
    ] = None,
    before: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="What goes into a filter stage.")
    ] = None,
    after: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="What comes out of it.")
    ] = None,
    field: Annotated[
        str,
        typer.Option(
            "--field", "--column", help="The text in a row, such as text or messages[].content."
        ),
    ] = "text",
    role: Annotated[
        str | None, typer.Option(help="Of messages, those of one role, such as assistant.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Audit each source by itself, too.")
    ] = None,
    detector: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="A detector's score, as another measure.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE.parquet", help="Write the scores of each document of --text."),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE:LEVEL",
            help="Judge this difference instead of the usual ones, such as entropy:-0.2. May be "
            "repeated.",
        ),
    ] = None,
    skip_bad: Annotated[
        int, typer.Option(metavar="N", min=0, help="Pass over at most so many broken rows.")
    ] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many work on corpora; up to 3 if it pays.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Write a section for a README or a summary of CI."),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(metavar="Q.jsonl", help="Knowledge Retention questions.")
    ] = None,
    coverage: Annotated[
        Path | None,
        typer.Option(
            metavar="Q.jsonl",
            help="Questions with answers, such as GSM8K's; several are sampled of each: distinct "
            "ones, pass@1 and pass@k.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Answers sampled a question of --coverage; 8.")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", help="Of pass@k; as many as samples.")] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer of --coverage; 256.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put questions of --coverage into the chat template.")
    ] = False,
    benchmarks: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="Benchmarks, as under `benchmarks` of a run."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the report as HTML, and as JSON.")
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            min=16, help="Most passages a model continues, and questions of --coverage; 256."
        ),
    ] = None,
    tokens: Tokens = None,
    seed: Seed = 0,
    device: Device = None,
    bos: BosOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Is a model, or a corpus, collapsing? Exit code 0: no evidence; 3: evidence; 2: bad input.

    `audit MODEL --text FILE` audits a model, `audit --text FILE --against FILE` a corpus, `audit
    --before FILE --after FILE` what a filter stage keeps.
    """
    from fortifai.report.audit import check_card, check_folder

    if out is not None:
        check_folder(out)
    if card is not None:
        check_card(card)
    of_models = {
        "--base": base, "--questions": questions, "--benchmarks": benchmarks, "--prompts": prompts,
        "--tokens": tokens, "--device": device, "--bos": bos, "--coverage": coverage,
    }  # fmt: skip
    of_coverage = {
        "--samples": samples, "--k": k, "--answer-tokens": answer_tokens, "--chat": chat or None,
    }  # fmt: skip
    of_corpora = {
        "--against": against, "--before": before, "--after": after, "--role": role, "--by": by,
        "--detector": detector, "--scores": scores, "--fail-on": fail_on,
        "--skip-bad": skip_bad or None, "--processes": processes, "--card": card,
    }  # fmt: skip
    if coverage is None:
        _refuse(of_coverage, "need --coverage with questions; give them")
    if model is None:
        _refuse(of_models, "need a MODEL; give one")
        from fortifai.audit.documents import Fields
        from fortifai.cli import corpus

        options = corpus.Options(
            tuple(text or ()), tuple(against or ()), tuple(before or ()), tuple(after or ()),
            Fields(field, role, by, detector), scores, tuple(fail_on or ()), skip_bad, processes,
            card, out, seed, as_json,
        )  # fmt: skip
        raise typer.Exit(corpus.run(options))
    if Path(model).is_file() and not model.lower().endswith(".gguf"):
        raise InputError(
            f"MODEL is {model}, a file; to audit several files together repeat --text, or quote "
            "the glob that names them"
        )
    _refuse(of_corpora, "are for corpora, and a MODEL is given; leave one out")
    if text is None or len(text) != 1:
        raise InputError("a MODEL is audited with one human text; give it with --text")
    covered = None
    if coverage is not None:
        covered = _coverage(coverage, samples, k, answer_tokens, prompts, chat)
    found = _model(
        model, text[0], base, questions, covered, benchmarks, prompts, tokens, field, seed, device,
        bos,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.record()))
    else:
        show(found)
    if out is not None:
        from fortifai.report.audit import write_audit

        path = write_audit(found, out)
        err_console.print(Text(f"report: {path.resolve()}"), soft_wrap=True)
    if found.collapsed:
        raise typer.Exit(FOUND)


def _refuse(options: Mapping[str, object], why: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(f"{', '.join(given)} {why}")


def _model(
    model: str,
    text: str,
    base: str | None,
    questions: Path | None,
    coverage: tuple[Coverage, list[str]] | None,
    benchmarks: Path | None,
    prompts: int | None,
    tokens: int | None,
    column: str,
    seed: int,
    device: str | None,
    bos: Bos | None,
) -> Audit:
    from fortifai.audit import ModelAudit, audit_model
    from fortifai.data.questions import read_questions

    # everything is read before anything is done
    human = read_corpus(text, column).text
    asked = read_questions([questions], root=Path.cwd())[0] if questions else []
    suite = _suite(benchmarks) if benchmarks else None
    lm = load_model(model, device, bos)
    first = None if base is None else load_model(base, device, bos)
    remarks = suite.check(lm.model, lm.tokenizer, lm.special) if suite else []
    several, notes = coverage or (None, [])
    with bars() as tick:
        options = ModelAudit(
            subject=model,
            base=first,
            base_name=base or "the base model",
            questions=asked,
            coverage=several,
            benchmarks=_scores(suite, lm, tick) if suite else (),
            remarks=[*remarks, *notes],
            windows=prompts or 256,
            size=tokens,
            seed=seed,
        )
        return audit_model(lm, human, options, tick=tick)


def _coverage(
    path: Path,
    samples: int | None,
    k: int | None,
    answer_tokens: int | None,
    most: int | None,
    chat: bool,
) -> tuple[Coverage, list[str]]:
    """What is asked, and notes on the file."""
    from fortifai.data.answers import read_answered
    from fortifai.evals.coverage import Coverage

    questions, notes = read_answered([path], root=Path.cwd())
    told = {"samples": samples, "answer_tokens": answer_tokens, "most": most}
    given = {name: value for name, value in told.items() if value is not None}
    return Coverage(tuple(questions), k=k, chat=chat, **given), notes


def _suite(path: Path) -> Suite:
    from fortifai.configuration import read_benchmarks
    from fortifai.evals.benchmarks import read

    return read(read_benchmarks(path), path.parent)


def _scores(suite: Suite, lm: CausalLM, tick: Callable[[str, int, int], None]) -> Iterator[Score]:
    """Scores, measured when the first one is asked for: after all that the audit checks."""
    yield from suite.run(lm, tick=lambda done, total: tick("benchmarks", done, total)).scores


def threshold(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder, or a hub id.")],
    text: Annotated[str, typer.Option(metavar="FILE", help="Text that it will be trained on.")],
    drop: Annotated[
        float, typer.Option(help="Share of its own tokens that the quantile rule drops.")
    ] = 0.25,
    prompts: Annotated[int, typer.Option(min=16, help="Most passages that are looked at.")] = 512,
    tokens: Tokens = None,
    column: Column = "text",
    seed: Seed = 0,
    device: Device = None,
    bos: BosOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Which threshold to truncate at: what each would drop, and two rules for choosing one."""
    import dataclasses

    from fortifai.audit.threshold import check_dropped, suggest_threshold

    check_dropped(drop)
    human = read_corpus(text, column).text
    lm = load_model(model, device, bos)
    with bars() as tick:
        found = suggest_threshold(
            lm,
            human,
            subject=model,
            dropped=drop,
            windows=prompts,
            size=tokens,
            seed=seed,
            tick=tick,
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))
        return
    _show_threshold(found)


def _show_threshold(found: Suggestion) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("confidence")
    names = list(found.histograms)
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("")
    # bars of both texts on one scale, whatever their sizes
    shares_of = [
        [(a + b) / max(1, sum(counts)) for a, b in zip(counts[::2], counts[1::2], strict=True)]
        for counts in found.histograms.values()
    ]
    top = max(map(max, shares_of)) or 1
    bins = len(shares_of[0])
    for i, row in enumerate(zip(*shares_of, strict=True)):
        cells: list[str | Text] = [f"{i / bins:.1f} to {(i + 1) / bins:.1f}"]
        for share in row:
            cells += [f"{share:.1%}", Text("▇" * round(18 * share / top), style="cyan")]
        table.add_row(*cells)
    out_console.print(table)
    shares = Table(box=None, pad_edge=False, header_style="bold")
    shares.add_column("threshold")
    shares.add_column("drops of real text", justify="right")
    shares.add_column("drops of its own text", justify="right")
    for level, real, own in zip(found.thresholds, found.real, found.own, strict=True):
        shares.add_row(f"{level:g}", f"{real:.1%}", f"{own:.1%}")
    out_console.print()
    out_console.print(shares)
    crossing = (
        "none: the confidences do not part into two groups, so nothing should be dropped"
        if found.crossing is None
        else f"{found.crossing:.3f}"
    )
    out_console.print()
    say(f"where two Gaussians cross (weight 'dynamic'): {crossing}")
    if found.crossing is not None:
        _show_drops(found.crossing_drops)
    say(
        f"quantile, dropping {found.dropped:.0%} of its own tokens: {found.quantile:.3f} "
        f"({found.tokens:,} tokens at temperature 1)"
    )
    _show_drops(found.quantile_drops)


def _show_drops(drops: tuple[float, float]) -> None:
    """What a suggestion drops, and whether that is too much of what is to be learned."""
    real, own = drops
    say(f"  drops {real:.1%} of real text, {own:.1%} of its own")
    if real > MOST_REAL:
        line = "  warning: more than a third of the real text would not be learned from"
        out_console.print(Text(f"{line}; take a higher one", style="yellow"), soft_wrap=True)
