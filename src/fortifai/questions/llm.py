"""The writer `llm`: a language model writes questions on each paragraph; they are validated.

Every answer is checked as a stranger's: its schema, its characters and lengths, and by the rules of
`check`. Every attempt stands in a journal before it counts, so a broken run goes on where it was,
and a finished one gives the same file again without asking.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fortifai.data.questions import Question, read_rows
from fortifai.data.text import Corpus
from fortifai.errors import InputError, RunFailed
from fortifai.questions.budget import Aside, Budget, Limits
from fortifai.questions.check import faults, unsupported
from fortifai.questions.endpoint import Endpoint, Settings
from fortifai.questions.journal import Journal
from fortifai.questions.passages import Paragraph, paragraphs
from fortifai.questions.prompt import SCHEMA, Answer, Draft, messages, read_answer
from fortifai.questions.reply import Busy, Reply

Listen = Callable[[int, int], None]
"""Called with the paragraphs that are done, and how many there are."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What the writer made.

    Attributes:
        questions: In the order of the text.
        rejected: Questions that were thrown away, by reason.
        paragraphs: Paragraphs asked for.
        done: Those that are finished.
        given_up: Those whose answers were useless each time; they count as finished.
        calls: All calls of the journal.
        new_calls: Those of this run.
        tokens: Tokens in and out, as the endpoint says or, where it does not, estimated.
        cost: US dollars by the prices given.
        stopped: Why paragraphs are left; empty when all are done.
        over: Tokens of the longest answer that is longer than was allowed; 0 if there is none.
    """

    questions: tuple[Question, ...]
    rejected: dict[str, int]
    paragraphs: int
    done: int
    given_up: int
    calls: int
    new_calls: int
    tokens: tuple[int, int]
    cost: float
    stopped: str
    over: int


class _LimitReached(Exception):  # noqa: N818 - an end that was asked for
    pass


def write(
    corpus: Corpus,
    settings: Settings,
    journal: Path,
    *,
    limits: Limits | None = None,
    per_paragraph: int = 5,
    only: int | None = None,
    replaces: Path | None = None,
    listen: Listen | None = None,
) -> Written:
    """Ask a model for questions on each paragraph of a corpus.

    Args:
        corpus: The text.
        settings: Where to ask.
        journal: File of the attempts; one that is there is gone on with.
        limits: What may be spent.
        per_paragraph: Most questions of one paragraph.
        only: Ask for this many paragraphs, evenly spread over the text; None for all.
        replaces: File that the questions are going to replace; if it is there, each of its
            questions must come from this journal, so that none is lost.
        listen: Told of the progress.

    Raises:
        InputError: No paragraphs, no key, a journal or a file to replace of something else, or the
            endpoint refuses.
        RunFailed: The endpoint did not answer, or answered nothing useful.
    """
    limits = limits or Limits()
    found = list(paragraphs(corpus))
    if not found:
        raise InputError(
            f"{corpus.source} has no paragraph of 20 words or more; questions need running text, "
            "one paragraph a line"
        )
    if only is not None and only < len(found):
        found = [found[i * len(found) // only] for i in range(only)]
    prompts = [messages(paragraph, per_paragraph) for paragraph in found]
    asked = {
        "model": settings.model,
        "temperature": settings.temperature,
        "per_paragraph": per_paragraph,
        "paragraphs": len(found),
        "prompts": hashlib.sha256(repr(prompts).encode("utf-8", "surrogatepass")).hexdigest(),
    }
    with Journal(journal, asked) as book:
        run = _Run(book, settings, limits, prompts, listen)
        if replaces is not None and replaces.exists():
            _check_replaced(replaces, _collect(found, per_paragraph, run, ""), journal)
        stopped = run.all()
        return _collect(found, per_paragraph, run, stopped)


def _check_replaced(path: Path, made: Written, journal: Path) -> None:
    """Refuse to replace a file of other questions. More answers only add to those of a journal."""
    try:
        own = {q.id for q in read_rows(path)} <= {q.id for q in made.questions}
    except InputError:
        own = False
    if not own:
        raise InputError(
            f"--out is {str(path)!r}, which holds what does not come from the journal {journal}; "
            "give another name, or remove the file"
        )


# --- asking -----------------------------------------------------------------------------------


class _Run:
    """The state that the threads of one run share: what is spent, and whether to stop."""

    def __init__(
        self,
        book: Journal,
        settings: Settings,
        limits: Limits,
        prompts: Sequence[list[dict[str, str]]],
        listen: Listen | None,
    ) -> None:
        self.book, self.settings, self.limits = book, settings, limits
        self.prompts, self.listen = prompts, listen
        self.before = len(book.records)
        self.useless: collections.Counter[int] = collections.Counter()
        self.answers: dict[int, Answer] = {}
        self.given_up: set[int] = set()
        self.budget = Budget(limits, settings.max_tokens, trusted=settings.base_url is None)
        self._lock = threading.Condition()
        self._stop = threading.Event()
        try:
            for record in book.records:
                self._note(record)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"the journal {book.path} is damaged (a line lacks {error}); give another file "
                "with --journal, or remove this one to begin anew"
            ) from error

    @property
    def finished(self) -> set[int]:
        """Paragraphs that need no further call."""
        return self.answers.keys() | self.given_up

    def all(self) -> str:
        """Ask for all paragraphs that are not finished; why it stopped early, or ''."""
        left = [i for i in range(len(self.prompts)) if i not in self.finished]
        self._tell()
        if not left:
            return ""
        stopped = ""
        with (
            contextlib.closing(Endpoint(self.settings)) as endpoint,
            concurrent.futures.ThreadPoolExecutor(self.limits.workers) as pool,
        ):
            jobs = [pool.submit(self._paragraph, endpoint, i) for i in left]
            try:
                for job in concurrent.futures.as_completed(jobs):
                    job.result()
            except _LimitReached as limit:
                stopped = str(limit)
            finally:
                # what is under way ends and is written down; nothing new begins
                self._stop.set()
                for job in jobs:
                    job.cancel()
        return stopped

    def _paragraph(self, endpoint: Endpoint, index: int) -> None:
        failed = 0
        while not (index in self.answers or index in self.given_up or self._stop.is_set()):
            aside = self._reserve(index)
            try:
                reply = endpoint.ask(self.prompts[index], SCHEMA)
            except Busy as busy:
                failed += busy.fault
                # what may have been charged for counts as dear as it can be
                most = aside.tokens if busy.paid else (0, 0)
                self._add(_attempt(index, most, failed=busy.why), aside)
                if failed >= self.limits.tries:
                    self._stop.set()
                    raise RunFailed(
                        f"the endpoint {endpoint.name} failed {failed} times in a row (last: "
                        f"{busy.why}); what is done stands in {self.book.path}, and the same "
                        "command goes on from there"
                    ) from busy
                if busy.fault:
                    self._wait(failed, busy.wait)
                continue
            except BaseException:
                self._stop.set()
                self._release(aside)
                raise
            failed = 0
            self._add(self._record(index, reply), aside)
            self._tell()

    def _record(self, index: int, reply: Reply) -> dict[str, Any]:
        """A line of the journal: the answer as it came, and why it is useless, if it is."""
        problem = reply.problem
        if not problem:
            try:
                read_answer(reply.text)
            except ValueError as error:
                problem = f"not as asked for: {error}"[:200]
        most = self.settings.max_tokens
        guess_in, guess_out = _guess(self.prompts[index]), reply.written // 2
        if reply.problem:  # what was written may not all have come
            guess_out = max(guess_out, most)
        tokens = (
            guess_in if reply.tokens_in is None else reply.tokens_in,
            guess_out if reply.tokens_out is None else reply.tokens_out,
        )
        # without a count it takes eight bytes a token to be sure: text has half of that
        surely = reply.written // 8 if reply.tokens_out is None else reply.tokens_out
        over = {"over": surely} if surely > most else {}
        return _attempt(index, tokens, answer=reply.text, useless=problem, **over)

    def _reserve(self, index: int) -> Aside:
        """Set the money of one call aside.

        Raises:
            _LimitReached: It may not be made.
        """
        budget, most = self.budget, self.limits.calls
        with self._lock:
            while True:
                if most is not None and len(self.book.records) + len(budget.under_way) >= most:
                    self._stop.set()
                    raise _LimitReached(f"--max-calls {most:,} is reached")
                aside = budget.aside(_guess(self.prompts[index]))
                if budget.fits(aside):
                    break
                if not budget.under_way or self._stop.is_set():
                    self._stop.set()
                    raise _LimitReached(budget.why_not(aside))
                self._lock.wait()  # what is under way will cost less than was set aside for it
            budget.under_way.append(aside)
        return aside

    def _release(self, aside: Aside) -> None:
        with self._lock:
            self.budget.under_way.remove(aside)
            self._lock.notify_all()

    def _add(self, record: dict[str, Any], aside: Aside) -> None:
        with self._lock:
            self.budget.under_way.remove(aside)
            self.book.add(record)
            self._note(record)
            self._lock.notify_all()
            # a model that never does as asked would be paid for each paragraph of the text
            hopeless = len(self.given_up) >= 5 and not self.answers
        if hopeless:
            self._stop.set()
            raise RunFailed(
                f"none of the first {len(self.given_up)} paragraphs got a useful answer (last: "
                f"{record.get('useless')}); use a model that follows a JSON schema, with a larger "
                "--max-tokens if its answers are cut off, and another --journal"
            )

    def _note(self, record: dict[str, Any]) -> None:
        index = int(record["paragraph"])
        if not 0 <= index < len(self.prompts):
            raise ValueError(f"a paragraph below {len(self.prompts)}")
        spent = int(record["tokens_in"]), int(record["tokens_out"])
        answered = "answer" in record
        self.budget.note(
            spent,
            over=int(record.get("over", 0)),
            guess=_guess(self.prompts[index]) if answered else None,
        )
        if not answered:
            return
        if record["useless"]:
            self.useless[index] += 1
            if self.useless[index] >= self.limits.tries:
                self.given_up.add(index)
        else:
            self.answers.setdefault(index, read_answer(record["answer"]))

    def _wait(self, failed: int, asked: float | None) -> None:
        """Twice as long each time, less a random part so that threads do not come back as one."""
        wait = min(60.0, self.limits.backoff * 2 ** (failed - 1)) * random.uniform(0.5, 1.0)
        self._stop.wait(wait if asked is None else max(asked, wait))

    def _tell(self) -> None:
        if self.listen is not None:
            with self._lock:
                done = len(self.finished)
            self.listen(done, len(self.prompts))


def _attempt(index: int, tokens: tuple[int, int], **what: str | int) -> dict[str, Any]:
    return {"paragraph": index, **what, "tokens_in": tokens[0], "tokens_out": tokens[1]}


def _guess(messages: Sequence[dict[str, str]]) -> int:
    """More tokens than a prompt has: two bytes a token, where English has about four."""
    return sum(len(m["content"].encode("utf-8", "surrogatepass")) for m in messages) // 2


# --- believing --------------------------------------------------------------------------------


def _collect(found: Sequence[Paragraph], per_paragraph: int, run: _Run, stopped: str) -> Written:
    """The questions of a run: from what its journal has alone, so that a replay gives the same."""
    questions: dict[str, Question] = {}
    rejected: collections.Counter[str] = collections.Counter()
    for index in sorted(run.answers):
        kept = 0
        for item in run.answers[index].questions:
            question = _question(item, found[index])
            why = (
                "duplicate"
                if question.id in questions
                else "too many"
                if kept == per_paragraph
                else distrusted(question, found[index])
            )
            if why:
                rejected[why] += 1
            else:
                questions[question.id] = question
                kept += 1
    return Written(
        questions=tuple(questions.values()),
        rejected=dict(sorted(rejected.items())),
        paragraphs=len(found),
        done=len(run.finished),
        given_up=len(run.given_up - run.answers.keys()),
        calls=len(run.book.records),
        new_calls=len(run.book.records) - run.before,
        tokens=run.budget.tokens,
        cost=run.budget.spent,
        stopped=stopped,
        over=run.budget.over if run.budget.unkept else 0,
    )


def _question(item: Draft, paragraph: Paragraph) -> Question:
    texts = [" ".join(x.split()) for x in (item.context, item.sentence_true, item.sentence_false)]
    return Question(texts[0], texts[1], texts[2], paragraph.line, paragraph.title)


def distrusted(question: Question, paragraph: Paragraph) -> str:
    """Why a model's question is thrown away: one word; empty if it is kept."""
    for text in (question.context, question.true, question.false):
        # control characters, and characters that show nothing or turn the direction of writing
        if not text.isprintable() or any("\ud800" <= c <= "\udfff" for c in text):
            return "characters"
    if found := faults(question):
        return found[0][0]
    if unsupported(question, f"{paragraph.title}\n{paragraph.text}"):
        return "location"
    return ""
