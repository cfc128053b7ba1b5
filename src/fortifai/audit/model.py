"""Audit of a language model, alone or beside the one that it came from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fortifai.audit import asked as asked_
from fortifai.audit.findings import Audit, Finding, Levels, Worse, judged
from fortifai.errors import InputError
from fortifai.evals import confidence as confidence_
from fortifai.evals import coverage as coverage_
from fortifai.evals import diversity
from fortifai.evals.coverage import Coverage
from fortifai.lab.measures import Score
from fortifai.models.options import Sample
from fortifai.stats.sample import Interval, sample_mean

if TYPE_CHECKING:
    from fortifai.data.questions import Question
    from fortifai.models.causal_lm import CausalLM

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Tick = Callable[[str, int, int], None]

HUMAN = "human text"
_FAMILIES = {
    "entropy": "diversity",
    "repetition": "repetition",
    "confidence": "confidence",
    "human": "perplexity",
}
EXAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Passages:
    """Windows of a human text: those that a model continues, and as many for the noise floor.

    Attributes:
        prompts: (w, context) token ids.
        human: (w, size) what stood after each prompt.
        more: (w, context + size) further windows.
    """

    prompts: Ids
    human: Ids
    more: Ids

    @property
    def context(self) -> int:
        """Tokens of a prompt."""
        return int(self.prompts.shape[1])


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a model wrote after the prompts, and what it thinks of that and of the human text.

    Attributes:
        text: (w, size) token ids.
        own: (w, size) log p of its own text, nats.
        human: (w, size) log p of the human text after the same prompts.
        more: (w, size) log p of the further windows, after as many tokens.
    """

    text: Ids
    own: Floats
    human: Floats
    more: Floats


def cut(lm: CausalLM, text: str, *, windows: int, size: int | None) -> Passages:
    """Cut a human text into passages, evenly spread.

    Args:
        lm: The model whose tokens they are.
        text: The text.
        windows: At most so many prompts.
        size: Tokens of a prompt and of what follows it, each; None: 64, or half of what the model
            reads if that is less.

    Raises:
        InputError: The text is too short, or the model too short for `size`.
    """
    from fortifai.models.scoring import positions

    limit = (positions(lm.model) - len(lm.special.front)) // 2
    length = min(64, limit) if size is None else size
    if length > limit:
        raise InputError(
            f"prompts and what follows them would have {length} tokens each, but the model reads "
            f"{2 * limit} at most; give {limit} or less"
        )
    ids = lm.encode(text)
    count = min(windows, len(ids) // (2 * length) // 2)
    if count < diversity.MIN_WINDOWS:
        least = 2 * diversity.MIN_WINDOWS
        raise InputError(
            f"the text has {len(ids):,} tokens; an audit needs at least "
            f"{2 * length * least:,} ({least} passages of {2 * length}), give a longer text"
        )
    both = _spread(ids, 2 * count, 2 * length)
    return Passages(both[::2, :length], both[::2, length:], both[1::2])


def _spread(ids: Ids, count: int, size: int) -> Ids:
    """(count, size): windows evenly spread over a stream, none overlapping another."""
    room = len(ids) // count
    starts = np.arange(count) * room + (room - size) // 2
    windows: Ids = ids[starts[:, None] + np.arange(size)]
    return windows


def write(lm: CausalLM, passages: Passages, name: str, *, seed: int, tick: Tick) -> Generated:
    """Let a model continue all prompts by sampling at temperature 1, and score everything.

    At temperature 1 nothing is put on top of the model: if it is as sure as it should be, its own
    text is as probable to it as human text is.

    Raises:
        InputError: Log-probabilities of the model `name` are not finite.
    """
    size = passages.human.shape[1]
    done = 0

    def scored(windows: Ids) -> Floats:
        nonlocal done
        log_p = lm.window_log_prob(windows)[:, -size:].astype(np.float64)
        if not np.isfinite(log_p).all():
            raise InputError(
                f"{name} gives log-probabilities that are not finite, so its weights are broken; "
                "load or train another"
            )
        done += 1
        tick("scoring", done, 3)
        return log_p

    # before the writing, which takes longest
    human = scored(np.concatenate([passages.prompts, passages.human], axis=1))
    more = scored(passages.more)
    text = lm.write(
        passages.prompts,
        size,
        Sample(kind="sample"),
        seed=seed,
        tick=lambda done, total: tick("writing", done, total),
    )
    own = scored(np.concatenate([passages.prompts, text], axis=1))
    return Generated(text, own, human, more)


@dataclasses.dataclass(frozen=True)
class ModelAudit:
    """What a model is audited with.

    Attributes:
        subject: What to call the model.
        base: The model that it came from, with the same tokenizer.
        base_name: What to call that one.
        questions: Knowledge Retention questions.
        coverage: Questions that it answers several times; None for none.
        benchmarks: Scores of published benchmarks; those of whole benchmarks are shown. They are
            asked for when all else is done, so that a generator measures them only then.
        remarks: What to say of how those were measured.
        windows: At most so many prompts.
        size: Tokens of a prompt and of what follows; None: 64, or what the model has room for.
        seed: Of the sampling and the resampling.
        levels: What counts as evidence.
    """

    subject: str = "the model"
    base: CausalLM | None = None
    base_name: str = "the base model"
    questions: Sequence[Question] = ()
    coverage: Coverage | None = None
    benchmarks: Iterable[Score] = ()
    remarks: Sequence[str] = ()
    windows: int = 256
    size: int | None = None
    seed: int = 0
    levels: Levels = dataclasses.field(default_factory=Levels)


def audit_model(
    lm: CausalLM,
    text: str,
    options: ModelAudit | None = None,
    *,
    tick: Tick = lambda what, done, total: None,
    **changed: Any,
) -> Audit:
    """Ask of a model whether it is collapsing.

    The model continues prompts from a human text by sampling at temperature 1. Judged are the
    diversity of what it writes (entropy, rare tokens, repetition, duplication, beside what stood
    after the same prompts), how much surer it is of that than of the human text (ForTIFAI,
    2509.08972, Fig. 1), whether human text is less likely to it than to one who guesses among all
    tokens blindly and, with a base model, what it has lost against it on the same prompts and
    questions, pass@k among it.

    Over-fitting makes a model surer of its own text than of new text, too, if never as narrow:
    give a text that it was trained on, or its base model, to tell the two apart.

    Args:
        lm: The model.
        text: Human text of the kind that the model should know.
        options: All else.
        tick: Told what is being done, and how much of it is.
        **changed: Fields of `ModelAudit` by name, such as ``windows=16``.

    Raises:
        InputError: The text is too short, `size` too large, the base model has another tokenizer,
            the log-probabilities of one of them are not finite, or a question of `coverage` does
            not fit.
    """
    o = dataclasses.replace(options or ModelAudit(), **changed)
    levels, base, seed, base_name = o.levels, o.base, o.seed, o.base_name
    if base is not None and base.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise InputError(
            f"{base_name} and {o.subject} have different tokenizers, so their texts cannot be "
            "compared token by token; give the model that this one was trained from"
        )
    passages = cut(lm, text, windows=o.windows, size=o.size)
    for each in (lm, base):
        if o.coverage is not None and each is not None:
            coverage_.check(each, o.coverage)
    wrote = write(lm, passages, o.subject, seed=seed, tick=tick)
    human, more = passages.human, passages.more[:, passages.context :]
    findings = _diversity(wrote.text, human, more, levels, seed)
    findings += _confidence(wrote, len(lm.tokenizer), seed, levels)
    not_measured = ["whether what it writes is true"]
    if base is not None:
        first = write(base, passages, base_name, seed=seed, tick=tick)
        findings += _since(wrote, first, findings, base_name, levels)
    else:
        not_measured.append("what it has lost against the model it came from (--base)")
    asked, several = _asked(lm, o, not_measured, tick)
    findings += asked
    count, length = human.shape
    return Audit(
        o.subject,
        HUMAN,
        tuple(sorted(findings, key=lambda found: found.level is None)),
        f"{count:,} prompts of {length} tokens, evenly spread over the text, each continued by "
        f"{length} tokens at temperature 1{_behind(lm)}",
        tuple(not_measured),
        (*o.remarks, *several.remarks),
        {
            "its own text": tuple(confidence_.histogram(wrote.own.ravel()).tolist()),
            HUMAN: tuple(confidence_.histogram(wrote.human.ravel()).tolist()),
        },
        tuple(_example(lm, passages, wrote, row) for row in _rows(count)),
        several.solved,
    )


def _asked(
    lm: CausalLM, o: ModelAudit, not_measured: list[str], tick: Tick
) -> tuple[list[Finding], asked_.Asked]:
    """What questions, coverage and benchmarks found; adds to what is not measured."""
    base, base_name, levels = o.base, o.base_name, o.levels
    findings: list[Finding] = []
    if o.questions:
        findings += asked_.knowledge(lm, base, base_name, o.questions, levels, tick)
    else:
        not_measured.append("what it knows (--questions)")
    several = asked_.Asked()
    if o.coverage is not None:
        models = [(o.subject, lm)]
        if base is not None:
            # a model beside itself has its name but once
            models.append((base_name if base_name != o.subject else "the base model", base))
        several = asked_.coverage(models, o.coverage, levels, o.seed, tick)
        findings += several.findings
    else:
        not_measured.append("what it finds in several answers (--coverage)")
    # of a group (67 paradigms, 57 subjects) its own score, not those of all its parts
    scores = list(o.benchmarks)
    whole = [score for score in scores if score.on == score.measure.partition(".")[0]]
    findings += [asked_.benchmark(score) for score in whole]
    if not scores:
        not_measured.append("published benchmarks (--benchmarks)")
    return findings, several


def _behind(lm: CausalLM) -> str:
    """What stands before every passage."""
    if lm.special.bos is None:
        return ""
    return f", each behind {lm.tokenizer.convert_ids_to_tokens(lm.special.bos)}"


def _diversity(own: Ids, human: Ids, more: Ids, levels: Levels, seed: int) -> list[Finding]:
    """Entropy, tail, repetition, duplication and divergence of what was written."""
    texts = own, human, more
    entropy = diversity.compared(*texts, diversity.ENTROPY, seed=seed)
    again = diversity.compared(*texts, diversity.DUPLICATION, n=3, seed=seed)
    tail = diversity.tail(*texts, seed=seed)
    divergence = diversity.divergence(*texts, seed=seed)
    found = diversity.means(*map(diversity.repetition, texts), seed=seed)
    rows: tuple[tuple[str, str, diversity.Comparison, str, Worse | None, str], ...] = (
        ("entropy", "diversity of tokens, entropy", entropy, "nats", "lower", "diversity"),
        ("tail", "rare tokens", tail, "share", "lower", "tails"),
        ("repetition", "repetition in a passage", found, "share", "higher", "repetition"),
        ("duplication", "the same phrases everywhere", again, "share", "higher", "duplication"),
        ("divergence", "divergence of tokens", divergence, "nats", None, "diversity"),
    )
    return [
        judged(name, title, HUMAN, found, unit, worse, levels, family)
        for name, title, found, unit, worse, family in rows
    ]


def _confidence(wrote: Generated, vocabulary: int, seed: int, levels: Levels) -> list[Finding]:
    human, blind = sample_mean(-wrote.human.mean(1)), math.log(vocabulary)
    p = [np.exp(x).mean(1) for x in (wrote.own, wrote.human, wrote.more)]
    nll = [-x.mean(1) for x in (wrote.own, wrote.human, wrote.more)]
    surer, surprised = (diversity.means(*x, seed=seed) for x in (p, nll))
    title = "confidence in its own text"
    return [
        judged("confidence", title, HUMAN, surer, "probability", "higher", levels, "confidence"),
        judged(
            "surprise",
            "surprise at its own text",
            HUMAN,
            surprised,
            "nats a token",
            None,
            levels,
            "confidence",
        ),
        Finding(
            "human",
            "surprise at human text",
            "blind guessing",
            human.value,
            blind,
            asked_.shifted(human, -blind),
            None,
            "nats a token",
            "higher",
            0.0,
            "perplexity",
        ),
    ]


def _since(
    wrote: Generated,
    first: Generated,
    findings: Sequence[Finding],
    base: str,
    levels: Levels,
) -> list[Finding]:
    """What has changed since the base model, on the same prompts."""
    floors = {found.name: found.floor for found in findings}
    rep = [diversity.repetition(x.text) for x in (wrote, first)]
    gap = [(np.exp(x.own) - np.exp(x.human)).mean(1) for x in (wrote, first)]
    human = [-x.human.mean(1) for x in (wrote, first)]
    changes: tuple[tuple[str, str, tuple[float, float, Interval], str, Worse | None], ...] = (
        (
            "entropy",
            "diversity of tokens, entropy",
            diversity.differences(wrote.text, first.text),
            "nats",
            "lower",
        ),
        ("repetition", "repetition in a passage", asked_.paired(*rep), "share", "higher"),
        (
            "confidence",
            "confidence gap to human text",
            asked_.paired(*gap),
            "probability",
            "higher",
        ),
        ("human", "surprise at human text", asked_.paired(*human), "nats a token", None),
    )
    out = []
    for name, title, (value, reference, change), unit, worse in changes:
        level: float | None = getattr(levels, name) if worse else None
        floor = floors.get(name) if worse else None
        out.append(
            Finding(
                f"{name}.base",
                title,
                base,
                value,
                reference,
                change,
                floor,
                unit,
                worse,
                level,
                _FAMILIES[name],
            )
        )
    return out


def _rows(count: int) -> list[int]:
    return [round(i * (count - 1) / (EXAMPLES - 1)) for i in range(EXAMPLES)]


def _example(lm: CausalLM, passages: Passages, wrote: Generated, row: int) -> tuple[str, str, str]:
    texts = (passages.prompts[row], wrote.text[row], passages.human[row])
    prompt, own, human = (str(lm.tokenizer.decode(ids.tolist())) for ids in texts)
    return prompt, own, human
