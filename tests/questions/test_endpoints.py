"""What compatible endpoints do: other fields, ignored limits, errors inside, wrapped JSON."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fortifai.data.text import Corpus, read_text
from fortifai.errors import InputError, RunFailed
from fortifai.questions import llm
from fortifai.questions.budget import UNBOUNDED, Budget, Limits
from fortifai.questions.endpoint import Endpoint, Settings
from fortifai.questions.llm import Written
from fortifai.questions.prompt import Answer, read_answer
from tests.questions.server import Act, serving
from tests.questions.server import Endpoint as Server
from tests.questions.test_llm import TOWNS, answer, good, item, text, town_of, towns

LONGEST = 400
NEW, OLD = "max_completion_tokens", "max_tokens"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "text.txt").write_text(text())
    return read_text(["text.txt"], root=tmp_path)


def write(
    corpus: Corpus, url: str, journal: Path, longest: int = LONGEST, **limits: Any
) -> Written:
    settings = Settings("m", url, timeout=20.0, max_tokens=longest)
    told = {"backoff": 0.001, "workers": 1} | limits
    return llm.write(corpus, settings, journal, limits=Limits(**told))


def fields(server: Server) -> list[set[str]]:
    return [{NEW, OLD} & body.keys() for _, body in server.requests]


# --- the field of the longest answer ----------------------------------------------------------


def refused(status: int, said: object) -> Act:
    return Act(status=status, body=json.dumps(said))


EXTRA = {"detail": [{"type": "extra_forbidden", "loc": ["body", NEW], "msg": "not permitted"}]}
BOTH = {"error": {"message": f"Setting '{OLD}' and '{NEW}' at the same time is not supported."}}
NEWER = {"error": {"message": f"'{OLD}' is not supported with this model. Use '{NEW}' instead."}}


def strict(body: dict[str, Any]) -> Act | None:
    return refused(422, {"object": "error", "message": EXTRA}) if NEW in body else None


def older(body: dict[str, Any]) -> Act | None:
    said = f"Unrecognized request argument supplied: {NEW}"
    return refused(400, {"error": {"message": said}}) if NEW in body else None


def newer(body: dict[str, Any]) -> Act | None:
    return refused(400, NEWER) if OLD in body else None


def either(body: dict[str, Any]) -> Act | None:
    return refused(400, BOTH) if {OLD, NEW} <= body.keys() else None


def either_old(body: dict[str, Any]) -> Act | None:
    return either(body) or strict(body)


def inside(body: dict[str, Any]) -> Act | None:
    error = {"error": {"code": 400, "message": f"unknown field {NEW}"}}
    return Act(body=json.dumps(error)) if NEW in body else None


@pytest.mark.parametrize(
    ("server", "vain", "kept"),
    [
        (strict, 1, {OLD}),
        (older, 1, {OLD}),
        (newer, 1, {NEW}),
        (either, 1, {NEW}),
        (either_old, 2, {OLD}),
        (inside, 1, {OLD}),
        (lambda body: None, 0, {OLD, NEW}),
    ],
)
def test_the_field_that_an_endpoint_knows(
    server: Callable[[dict[str, Any]], Act | None],
    vain: int,
    kept: set[str],
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    """What it refuses is not sent again, costs nothing, and is no failure in a row."""
    with serving(lambda n, body: server(body) or good(n, body)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j", tries=1)
        assert towns(written) == TOWNS
        assert written.calls == len(endpoint.requests) == vain + len(TOWNS)
        assert fields(endpoint)[vain:] == [kept] * len(TOWNS)
        sent = {body[name] for _, body in endpoint.requests for name in (NEW, OLD) if name in body}
        assert sent == {LONGEST}
    assert written.tokens == (800, 400)


def test_side_by_side_the_field_is_found_too(corpus: Corpus, tmp_path: Path) -> None:
    with serving(lambda n, body: either_old(body) or good(n, body)) as endpoint:
        assert towns(write(corpus, endpoint.url, tmp_path / "j", tries=1, workers=4)) == TOWNS


def test_an_endpoint_that_takes_no_limit_at_all(corpus: Corpus, tmp_path: Path) -> None:
    def script(n: int, body: dict[str, Any]) -> Act:
        return strict(body) or refused(422, {"detail": f"{OLD} is not permitted"})

    with (
        serving(script) as endpoint,
        pytest.raises(InputError, match="refuses with HTTP 422"),
    ):
        write(corpus, endpoint.url, tmp_path / "j")
    assert len(endpoint.requests) == 3


def test_openai_s_own_is_sent_its_own_field() -> None:
    assert Endpoint(Settings("m"))._fields == (NEW,)


# --- the budget where the limit is not kept -----------------------------------------------------


def lavish(tokens: Callable[[int], int]) -> Callable[[int, dict[str, Any]], Act]:
    def script(n: int, body: dict[str, Any]) -> Act:
        act = good(n, body)
        act.usage = {"prompt_tokens": 300, "completion_tokens": tokens(n)}
        return act

    return script


@pytest.mark.parametrize("workers", [1, 4])
def test_a_budget_holds_where_the_limit_does_not(
    workers: int, corpus: Corpus, tmp_path: Path
) -> None:
    """10 dollars a million: 0.05 a call where 0.004 is the most that was allowed."""
    told = {"cost": 0.12, "price_out": 10.0, "workers": workers}
    with serving(lavish(lambda n: 5000 * (n + 1))) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j", **told)
        assert len(endpoint.requests) == 1
        assert written.cost == pytest.approx(0.05)
        assert len(written.questions) == 1, "what is paid for is kept"
        assert written.over == 5000
        assert written.stopped == (
            "the endpoint does not keep --max-tokens 400 (it wrote 5,000), so --max-cost 0.12 may "
            "be passed by the next call, which costs up to 1.3107"
        )
        # the journal remembers
        assert write(corpus, endpoint.url, tmp_path / "j", **told).new_calls == 0
        # with room for answers of that length, the limit holds again
        again = write(corpus, endpoint.url, tmp_path / "j", 12_000, **{**told, "cost": 0.2})
        assert again.new_calls == 1
        assert again.over == 0


def test_with_room_for_any_answer_it_goes_on_one_by_one(corpus: Corpus, tmp_path: Path) -> None:
    lock, at_once, most = threading.Lock(), 0, 0

    def script(n: int, body: dict[str, Any]) -> Act:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return lavish(lambda n: 5000)(n, body)

    with serving(script) as endpoint:
        # 8 answers of 0.05, and the last begins while 0.35 is spent and 1.31 may come
        written = write(corpus, endpoint.url, tmp_path / "j", cost=1.7, price_out=10.0, workers=4)
    assert towns(written) == TOWNS
    assert written.cost == pytest.approx(0.4)
    assert most == 1


def test_without_a_budget_long_answers_are_only_told(corpus: Corpus, tmp_path: Path) -> None:
    with serving(lavish(lambda n: 5000)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j", workers=4)
    assert towns(written) == TOWNS
    assert (written.stopped, written.over) == ("", 5000)


def test_long_answers_show_without_usage(corpus: Corpus, tmp_path: Path) -> None:
    """4,000 bytes are at least 500 tokens; an answer of 200 bytes may have kept 400."""

    def script(n: int, body: dict[str, Any]) -> Act:
        act = answer(item(town_of(body)))
        act.usage = None
        if n == 1:
            act.message = {"reasoning_content": "x" * 4000}
        return act

    with serving(script) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j", cost=0.12, price_out=10.0)
    assert len(endpoint.requests) == 2
    assert 500 <= written.over < 560


def test_calls_go_side_by_side_only_while_all_could_be_endless() -> None:
    limits = Limits(cost=3.001, price_out=10.0)
    endless = UNBOUNDED * 10 / 1e6
    for trusted, most in ((False, int(3.0 / endless)), (True, int(3.0 / 0.004))):
        budget = Budget(limits, LONGEST, trusted=trusted)
        while budget.fits(aside := budget.aside(100)):
            budget.under_way.append(aside)
        assert len(budget.under_way) == most
    # alone, a call needs what it was allowed
    budget = Budget(Limits(cost=0.005, price_out=10.0), LONGEST, trusted=False)
    assert budget.fits(budget.aside(100))
    budget.note((100, 100))
    assert budget.fits(budget.aside(100))
    budget.note((100, 1))
    assert not budget.fits(budget.aside(100))


def test_prompts_that_are_dearer_than_guessed_are_set_aside_so() -> None:
    budget = Budget(Limits(cost=1.0, price_in=1000.0), LONGEST, trusted=False)
    assert budget.aside(100).tokens == (100, LONGEST)
    budget.note((250, 1), guess=100)
    budget.note((10, 1), guess=100)
    assert budget.aside(200).tokens == (500, LONGEST)


USAGES: list[tuple[dict[str, Any] | None, tuple[int | None, int | None]]] = [
    ({"prompt_tokens": 300, "completion_tokens": 50, "total_tokens": 900}, (300, 600)),
    ({"prompt_tokens": 300, "total_tokens": 350}, (300, 50)),
    ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (None, None)),
    ({"prompt_tokens": 300, "completion_tokens": 50}, (300, 50)),
    ({"prompt_tokens": "3", "completion_tokens": 5.0}, (None, None)),
    (None, (None, None)),
]


@pytest.mark.parametrize(("usage", "expected"), USAGES)
def test_what_an_endpoint_says_of_its_usage(
    usage: dict[str, Any] | None,
    expected: tuple[int | None, int | None],
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    def script(n: int, body: dict[str, Any]) -> Act:
        act = good(n, body)
        act.usage = usage
        return act

    with serving(script) as endpoint:
        settings = Settings("m", endpoint.url)
        reply = Endpoint(settings).ask([{"role": "user", "content": TOWNS[0]}], {})
        assert (reply.tokens_in, reply.tokens_out) == expected
        written = write(corpus, endpoint.url, tmp_path / "j", calls=1)
    # what is not told is never taken for nothing
    assert written.tokens[0] >= 300
    assert written.tokens[1] >= 50


# --- errors of status 200 -----------------------------------------------------------------------

ONCE: dict[str, Any] = {
    "overloaded": {"error": {"message": "upstream overloaded", "code": 502}},
    "a rate": {"error": {"message": "upstream overloaded", "type": "x", "code": "429"}},
    "named rate": {"error": {"message": "upstream overloaded", "code": "rate_limit_exceeded"}},
    "a text": {"error": "upstream overloaded"},
    "no code": {"error": {"message": "upstream overloaded", "code": None}, "choices": []},
    "as objects": {"object": "error", "message": "upstream overloaded", "code": 503},
    "in the choice": {
        "choices": [
            {
                "finish_reason": "error",
                "error": {"message": "upstream overloaded", "code": 502},
                "message": {"content": json.dumps({"questions": [item("Avonmore")]})},
            }
        ]
    },
    "beside an answer": {
        "error": {"message": "upstream overloaded"},
        "choices": [{"finish_reason": "stop", "message": {"content": '{"questions": []}'}}],
    },
    "broken without a word": {
        "choices": [{"finish_reason": "error", "message": {"content": '{"questions": []}'}}]
    },
}


@pytest.mark.parametrize("name", ONCE)
def test_an_error_inside_is_asked_for_again(name: str, corpus: Corpus, tmp_path: Path) -> None:
    act = Act(body=json.dumps(ONCE[name]))
    with serving(lambda n, body: act if n == 0 else good(n, body)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j")
    assert towns(written) == TOWNS
    assert written.calls == len(TOWNS) + 1
    record = json.loads((tmp_path / "j").read_text().split("\n")[1])
    said = (
        "an error without a message" if name == "broken without a word" else "upstream overloaded"
    )
    assert said in record["failed"]
    # a rate that is passed costs nothing; what broke off may have been worked on
    assert record["tokens_out"] == (0 if "rate" in name else LONGEST)


@pytest.mark.parametrize(
    "error",
    [
        {"message": "no such model", "code": 404},
        {"message": "no such model", "code": "model_not_found"},
        {"message": "no such model", "type": "invalid_request_error", "code": None},
        {"message": "no such model", "code": 429, "type": "insufficient_quota"},
    ],
)
def test_a_refusal_inside_ends_the_run(
    error: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    act = Act(body=json.dumps({"error": error}))
    with (
        serving(lambda n, body: act) as endpoint,
        pytest.raises(InputError, match=r"refuses with HTTP \d+ \(no such model\)"),
    ):
        write(corpus, endpoint.url, tmp_path / "j")
    assert len(endpoint.requests) == 1


def test_an_error_inside_that_stays(corpus: Corpus, tmp_path: Path) -> None:
    act = Act(body=json.dumps({"error": {"message": "out of memory", "code": 500}}))
    with (
        serving(lambda n, body: act) as endpoint,
        pytest.raises(RunFailed, match=r"failed 5 times in a row \(last: HTTP 500 \(out of mem"),
    ):
        write(corpus, endpoint.url, tmp_path / "j")


def test_no_error_is_none(corpus: Corpus, tmp_path: Path) -> None:
    def script(n: int, body: dict[str, Any]) -> Act:
        whole = json.loads(good(n, body).payload()) | {"error": None}
        return Act(body=json.dumps(whole))

    with serving(script) as endpoint:
        assert write(corpus, endpoint.url, tmp_path / "j").calls == len(TOWNS)


# --- answers that are wrapped -------------------------------------------------------------------

PLAIN = json.dumps({"questions": [item("Avonmore")]}, indent=1)
WRAPPED = {
    "fences": f"```json\n{PLAIN}\n```",
    "bare fences": f"```\n{PLAIN}\n```\n",
    "a sentence before": f"Here are the items {{as asked}}:\n\n{PLAIN}",
    "sentences around": f"Sure!\n```json\n{PLAIN}\n```\nLet me know if [you] need {{more}}.",
    "thought": f"<think>\nA draft: {PLAIN.replace('1', '2')}\n</think>\n\n{PLAIN}",
    "thought without its opening": f"So I need a town. {{}}</think>{PLAIN}",
    "thought and fences": f"<think>{{</think>\nAnswer:\n```json\n{PLAIN}\n```",
    "another name": f"<reasoning>hm</reasoning>{PLAIN}",
    "twice the same": f"{PLAIN}\n{PLAIN}",
}


@pytest.mark.parametrize("name", WRAPPED)
def test_an_answer_that_is_wrapped(name: str, corpus: Corpus, tmp_path: Path) -> None:
    with serving(lambda n, b: Act(WRAPPED[name]) if n == 0 else good(n, b)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j")
        assert towns(written) == TOWNS
        assert written.calls == len(TOWNS)
        # the journal has it as it came, and reads it the same way again
        assert json.loads((tmp_path / "j").read_text().split("\n")[1])["answer"] == WRAPPED[name]
        assert towns(write(corpus, endpoint.url, tmp_path / "j")) == TOWNS


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (f"<think>I write {PLAIN}", "the reasoning has no end"),
        (f"{PLAIN} or {PLAIN.replace('Avonmore', 'Corrib')}", "2 different answers"),
        (PLAIN[:-1] + ",}", "trailing comma"),
        (f"<think>{PLAIN}</think> That is all.", "Invalid JSON"),
        (PLAIN.replace("questions", "items"), "required"),
        ("{" * 50_000, "Invalid JSON|recursion"),
        ('{"questions": ' * 5_000, "Invalid JSON|recursion"),
    ],
)
def test_what_is_no_answer_all_the_same(said: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?i){message}"):
        read_answer(said)


def test_a_closing_tag_in_an_answer_is_its_text() -> None:
    whole = {"questions": [item("Avonmore", context="She wrote </think> in her book.")]}
    assert read_answer(json.dumps(whole)) == Answer.model_validate(whole)


def test_content_in_parts(corpus: Corpus, tmp_path: Path) -> None:
    def script(n: int, body: dict[str, Any]) -> Act:
        said = good(n, body).content
        parts: list[Any] = [
            {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
            {"type": "text", "text": said[:20]},
            {"type": "output_text", "text": said[20:]},
            {"type": "text"},
            3,
        ]
        return Act(message={"content": parts})

    with serving(script) as endpoint:
        assert towns(write(corpus, endpoint.url, tmp_path / "j")) == TOWNS


def test_reasoning_is_no_answer(corpus: Corpus, tmp_path: Path) -> None:
    thought = {"content": None, "reasoning_content": json.dumps({"questions": [item("Avonmore")]})}
    act = Act(message=thought, usage=None)
    with serving(lambda n, body: act if n == 0 else good(n, body)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j")
    assert written.calls == len(TOWNS) + 1
    record = json.loads((tmp_path / "j").read_text().split("\n")[1])
    assert record["useless"] == "the answer is empty, all of it is reasoning"
    assert record["tokens_out"] == LONGEST, "more may have been written than came"


def events(*pieces: dict[str, Any] | str) -> Act:
    lines = [p if isinstance(p, str) else f"data: {json.dumps(p)}\n\n" for p in pieces]
    return Act(body="".join(lines), headers={"Content-Type": "text/event-stream"})


def streamed(said: str, *last: dict[str, Any]) -> Act:
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}]
    deltas += [{"content": said[:7]}, {"content": said[7:]}]
    pieces = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    return events(": waiting\n\n", *pieces, *last, "data: [DONE]\n\n")


def test_a_stream_that_nobody_asked_for(corpus: Corpus, tmp_path: Path) -> None:
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}
    with serving(lambda n, b: streamed(good(n, b).content, end, usage)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j")
    assert towns(written) == TOWNS
    assert written.tokens == (7 * 8, 5 * 8)


def test_a_stream_that_breaks_off(corpus: Corpus, tmp_path: Path) -> None:
    cut = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    wrong = {"error": {"message": "lost a worker", "code": 502}}
    whys = []
    for n_bad, last in enumerate(((), (cut,), (wrong,))):

        def script(n: int, body: dict[str, Any], last: Any = last) -> Act:
            said = good(n, body).content
            return streamed(said, *last) if n == 0 else good(n, body)

        path = tmp_path / f"j{n_bad}"
        with serving(script) as endpoint:
            written = write(corpus, endpoint.url, path)
        assert towns(written) == TOWNS
        assert written.calls == len(TOWNS) + 1
        record = json.loads(path.read_text().split("\n")[1])
        whys.append(record.get("failed") or record["useless"])
    assert whys == [
        "the stream of the answer broke off",
        "the answer was cut off at --max-tokens",
        "HTTP 502 (lost a worker)",
    ]
