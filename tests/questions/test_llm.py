"""The writer `llm` against a real server that misbehaves, and against a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fortifai.cli.app import app
from fortifai.data.questions import read_rows, write_questions
from fortifai.data.text import Corpus, read_text
from fortifai.errors import InputError, RunFailed
from fortifai.questions import llm
from fortifai.questions.endpoint import Settings, retry_after
from fortifai.questions.llm import Limits, Written
from tests.questions.server import Act, serving

KEY = "sk-secret-0123456789"
TOWNS = ["Avonmore", "Belcastle", "Corrib", "Drumlin", "Ennisfree", "Fermoyle", "Galtee", "Howth"]
QUICK = Limits(backoff=0.001, workers=1)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "text.txt").write_text(text())
    return read_text(["text.txt"], root=tmp_path)


def text(towns: list[str] = TOWNS) -> str:
    return "".join(
        f"Writer number {i} lived a long and quiet life and wrote nineteen books in all. The writer"
        f" was born in the small town of {town} and never left it again.\n"
        for i, town in enumerate(towns)
    )


def item(town: str, **changes: str) -> dict[str, str]:
    other = TOWNS[(TOWNS.index(town) + 1) % len(TOWNS)]
    return {
        "context": f"Writer number {TOWNS.index(town)} spent a whole life in one place.",
        "sentence_true": f"The birth had taken place there too, in {town}.",
        "sentence_false": f"The birth had taken place there too, in {other}.",
    } | changes


def town_of(body: dict[str, Any]) -> str:
    asked = body["messages"][-1]["content"]
    return next(town for town in TOWNS if town in asked)


def answer(*items: dict[str, str]) -> Act:
    return Act(json.dumps({"questions": list(items)}))


def good(_: int, body: dict[str, Any]) -> Act:
    return answer(item(town_of(body)))


def write(corpus: Corpus, url: str, journal: Path, **changes: Any) -> Written:
    settings = Settings("writer-1", url, timeout=changes.pop("timeout", 20.0))
    return llm.write(corpus, settings, journal, **({"limits": QUICK} | changes))


def towns(written: Written) -> list[str]:
    return [q.true.rsplit(" ", 1)[1].rstrip(".") for q in written.questions]


def test_what_is_asked_and_what_becomes_of_the_answer(corpus: Corpus, tmp_path: Path) -> None:
    told = []
    with serving(good) as endpoint:
        written = write(
            corpus, endpoint.url, tmp_path / "j", listen=lambda *x: told.append(x), per_paragraph=3
        )
    assert towns(written) == TOWNS
    assert [q.location for q in written.questions] == list(range(1, 9))
    assert (written.calls, written.new_calls, written.done, written.stopped) == (8, 8, 8, "")
    assert written.tokens == (800, 400)
    assert told[0] == (0, 8)
    assert told[-1] == (8, 8)
    headers, body = endpoint.requests[0]
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == f"Bearer {KEY}"
    assert body["path"] == "/v1/chat/completions"
    assert body["model"] == "writer-1"
    assert "up to 3 items" in body["messages"][0]["content"]
    shape = body["response_format"]["json_schema"]
    assert shape["strict"] is True
    assert shape["schema"]["properties"]["questions"]["items"]["required"] == [
        "context",
        "sentence_true",
        "sentence_false",
    ]
    assert "temperature" not in body
    assert KEY not in (tmp_path / "j").read_text()
    assert endpoint.url not in (tmp_path / "j").read_text()


BROKEN = {
    "429": Act(status=429, body='{"error": {"message": "slow down"}}'),
    "429 with Retry-After": Act(status=429, body="{}", headers={"Retry-After": "0"}),
    "500": Act(status=500, body="<html>oops</html>"),
    "503 without body": Act(status=503, body=""),
    "malformed JSON": Act(body='{"choices": [{'),
    "half an answer": Act(json.dumps({"questions": [item("Avonmore")]}), cut=True),
    "no completion": Act(body='{"object": "list", "data": []}'),
    "choices of another kind": Act(body='{"choices": [3]}'),
    "message of another kind": Act(body='{"choices": [{"message": "hello"}]}'),
    "a list": Act(body="[1, 2]"),
    "deep nesting": Act(body="[" * 100_000),
    "content that is no JSON": Act("Here are your questions!"),
    "content cut in the middle": Act('{"questions": [{"context": "Wri', finish="length"),
    "wrong schema": Act('{"questions": [{"question": "Where?", "answer": "There"}]}'),
    "numbers for texts": answer(item("Avonmore") | {"context": 3}),  # type: ignore[dict-item]
    "a field too many": answer(item("Avonmore", note="x")),
    "too long": answer(item("Avonmore", context="x" * 401)),
    "half of a surrogate pair": answer(item("Avonmore", sentence_true="In Avonmore\ud800.")),
    "a refusal": Act("", refusal="I cannot help with that."),
    "nothing": Act("  "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_asked_for_again(name: str, corpus: Corpus, tmp_path: Path) -> None:
    """Each kind of failure costs one more call, and leaves no trace in the questions."""
    with serving(lambda n, body: BROKEN[name] if n == 2 else good(n, body)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j")
    assert towns(written) == TOWNS
    assert written.calls == 9
    assert not written.rejected


def test_a_slow_endpoint_is_asked_again(corpus: Corpus, tmp_path: Path) -> None:
    never = threading.Event()
    with serving(lambda n, b: Act(hold=never) if n == 0 else good(n, b)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j", timeout=0.5)
    assert towns(written) == TOWNS
    record = json.loads((tmp_path / "j").read_text().splitlines()[1])
    assert record["failed"] == "no answer within 0.5 s"
    # it may have been charged for, so it counts as the dearest answer
    assert record["tokens_out"] == Settings("m").max_tokens


def test_waiting_as_the_endpoint_asks(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    acts = [
        Act(status=429, body="{}", headers={"Retry-After": "7"}),
        Act(status=500, body="{}"),
        Act(status=500, body="{}"),
    ]
    with serving(lambda n, b: acts[n] if n < 3 else good(n, b)) as endpoint:
        monkeypatch.setattr(llm.threading, "Event", Stop)
        write(corpus, endpoint.url, tmp_path / "j", limits=Limits(backoff=1.0, workers=1), only=1)
        monkeypatch.undo()
    # base 1, 2, 4 s by the number of failures, less up to a half
    own = [w for w in waits if w]
    assert own[0] == 7.0
    assert 1.0 <= own[1] <= 2.0
    assert 2.0 <= own[2] <= 4.0


def test_retry_after() -> None:
    now = 1_700_000_000.0
    assert retry_after("12", now) == 12.0
    assert retry_after("Tue, 14 Nov 2023 22:13:50 GMT", now) == 30.0  # now is 22:13:20
    assert retry_after("Tue, 14 Nov 2023 22:00:00 GMT", now) == 0.0
    assert retry_after("100000", now) == 300.0
    assert [retry_after(v, now) for v in (None, "", "soon", "nan")] == [None] * 4


def test_an_endpoint_that_stays_down_loses_nothing(corpus: Corpus, tmp_path: Path) -> None:
    down = Act(status=500, body='{"error": {"message": "out of memory"}}')
    with serving(lambda n, b: good(n, b) if n < 3 else down) as endpoint:
        with pytest.raises(RunFailed, match=r"failed 5 times in a row \(last: HTTP 500 \(out of m"):
            write(corpus, endpoint.url, tmp_path / "j")
        assert len(endpoint.requests) == 3 + 5
    with serving(good) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j")
        assert len(endpoint.requests) == 5
    assert towns(written) == TOWNS


def test_nobody_listens(corpus: Corpus, tmp_path: Path) -> None:
    with serving(good) as endpoint:
        url = endpoint.url
    with pytest.raises(RunFailed, match=r"127\.0\.0\.1:\d+ failed 5 times .*connection"):
        write(corpus, url, tmp_path / "j")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_an_endpoint_that_refuses(status: int, corpus: Corpus, tmp_path: Path) -> None:
    said = f"bad key {KEY}\nsee\x1b[31m the help"
    refusal = Act(status=status, body=json.dumps({"error": {"message": said}}))
    with serving(lambda n, b: refusal) as endpoint, pytest.raises(InputError) as caught:
        write(corpus, endpoint.url, tmp_path / "j")
    assert len(endpoint.requests) == 1
    assert f"HTTP {status} (bad key *** see [31m the help)" in str(caught.value)


def test_a_key_that_python_would_quote(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own errors show what it could not send as Python writes it."""
    key = "sk-top\\secret"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    said = f"{b'Bearer ' + key.encode()!r} or {key}"
    refusal = Act(status=401, body=json.dumps({"error": {"message": said}}))
    with serving(lambda n, b: refusal) as endpoint, pytest.raises(InputError) as caught:
        write(corpus, endpoint.url, tmp_path / "j")
    assert "(b'Bearer ***' or ***)" in str(caught.value)


def test_a_key_from_a_file_with_crlf(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\r\n")
    with serving(good) as endpoint:
        assert towns(write(corpus, endpoint.url, tmp_path / "j")) == TOWNS
    headers = {k.lower(): v for k, v in endpoint.requests[0][0].items()}
    assert headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["sk-top\rsecret", "sk-töpsecret", "sk-top\udcffsecret", " \r\n"])
def test_a_key_that_no_header_can_carry(
    key: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", key)
    with serving(good) as endpoint, pytest.raises(InputError) as caught:
        llm.write(corpus, Settings("m", endpoint.url, "OTHER_KEY"), tmp_path / "j")
    assert str(caught.value) == (
        "the key in OTHER_KEY is blank or holds a character that no header can carry; set it anew"
    )
    assert not endpoint.requests
    assert "sk-" not in (tmp_path / "j").read_text()


def test_one_run_at_a_time_on_a_journal(corpus: Corpus, tmp_path: Path) -> None:
    go = threading.Event()
    first: list[Written] = []

    def script(n: int, body: dict[str, Any]) -> Act:
        act = good(n, body)
        act.hold = go
        return act

    with serving(script) as endpoint:
        job = threading.Thread(
            target=lambda: first.append(write(corpus, endpoint.url, tmp_path / "j"))
        )
        job.start()
        while job.is_alive() and not endpoint.requests:
            time.sleep(0.01)
        with pytest.raises(InputError, match="j is in use by another run of fortifai; wait for it"):
            write(corpus, endpoint.url, tmp_path / "j")
        go.set()
        job.join()
        assert towns(first[0]) == TOWNS
        assert write(corpus, endpoint.url, tmp_path / "j").new_calls == 0, "free again"
        assert len(endpoint.requests) == 8


def test_no_more_money_is_no_reason_to_wait(corpus: Corpus, tmp_path: Path) -> None:
    body = '{"error": {"message": "pay first", "code": "insufficient_quota"}}'
    with (
        serving(lambda n, b: Act(status=429, body=body)) as endpoint,
        pytest.raises(InputError, match="pay first"),
    ):
        write(corpus, endpoint.url, tmp_path / "j")


def saved(written: Written, path: Path) -> bytes:
    write_questions(path, written.questions)
    return path.read_bytes()


def test_a_finished_run_replays_without_a_call_or_a_key(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(good) as endpoint:
        first = saved(write(corpus, endpoint.url, tmp_path / "j"), tmp_path / "q")
    monkeypatch.delenv("OPENAI_API_KEY")
    before = (tmp_path / "j").read_bytes()
    again = llm.write(corpus, Settings("writer-1"), tmp_path / "j")
    assert saved(again, tmp_path / "q") == first
    assert (again.new_calls, again.calls) == (0, 8)
    assert (tmp_path / "j").read_bytes() == before


def test_the_number_of_workers_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    out = []
    for workers in (1, 4):
        limits = Limits(backoff=0.001, workers=workers)
        with serving(lambda n, b: BROKEN["500"] if n % 3 == 1 else good(n, b)) as endpoint:
            path = tmp_path / f"j{workers}"
            out.append(saved(write(corpus, endpoint.url, path, limits=limits), tmp_path / "q"))
    assert out[0] == out[1]


def test_a_torn_last_line_is_asked_for_again(corpus: Corpus, tmp_path: Path) -> None:
    journal = tmp_path / "j"
    with serving(good) as endpoint:
        first = saved(write(corpus, endpoint.url, journal), tmp_path / "q")
        whole = journal.read_bytes()
        for cut in (1, 20, len(whole) - whole.index(b"\n") - 5):
            journal.write_bytes(whole[:-cut])
            assert saved(write(corpus, endpoint.url, journal), tmp_path / "q") == first
        assert journal.read_bytes() == whole
        # the very first line
        journal.write_bytes(whole[:10])
        assert saved(write(corpus, endpoint.url, journal), tmp_path / "q") == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"hello\n", "no line of a journal"),
        (lambda d: b'{"a": 1}\n', "is no journal"),
        (lambda d: b"# notes", "is no journal"),
        (lambda d: d.replace(b'"paragraph"', b'"paragraphs"', 1) + b"{}\n", "damaged|begun with"),
        (lambda d: d + b'{"paragraph": 1}\n', "damaged"),
        (lambda d: d + b"[]\n", "line 10, is no line"),
        (lambda d: d.replace(b'\\"questions\\"', b'\\"q\\"'), "damaged"),
    ],
)
def test_a_file_that_is_no_journal(
    change: Any, message: str, corpus: Corpus, tmp_path: Path
) -> None:
    with serving(good) as endpoint:
        write(corpus, endpoint.url, tmp_path / "j")
    (tmp_path / "j").write_bytes(change((tmp_path / "j").read_bytes()))
    with pytest.raises(InputError, match=message):
        write(corpus, endpoint.url, tmp_path / "j")


def test_a_journal_of_something_else(corpus: Corpus, tmp_path: Path) -> None:
    with serving(good) as endpoint:
        write(corpus, endpoint.url, tmp_path / "j")
        with pytest.raises(InputError, match="begun with per_paragraph 5, not 4"):
            write(corpus, endpoint.url, tmp_path / "j", per_paragraph=4)
        (tmp_path / "text.txt").write_text(text(TOWNS[1:]))
        other = read_text(["text.txt"], root=tmp_path)
        with pytest.raises(InputError, match="begun with paragraphs 8, not 7"):
            write(other, endpoint.url, tmp_path / "j")


def test_a_limit_on_calls_counts_all_runs(corpus: Corpus, tmp_path: Path) -> None:
    with serving(lambda n, b: BROKEN["500"] if n == 1 else good(n, b)) as endpoint:
        for calls, done in ((3, 2), (3, 2), (6, 5)):
            limits = Limits(calls=calls, backoff=0.001, workers=3 if calls == 6 else 1)
            written = write(corpus, endpoint.url, tmp_path / "j", limits=limits)
            assert (written.calls, written.done) == (calls, done)
            assert len(endpoint.requests) == calls
            assert written.stopped == f"--max-calls {calls} is reached"
        # three threads race for the last calls, so which five paragraphs are done is not said
        assert len(towns(written)) == 5
        assert set(towns(written)) < set(TOWNS)
        assert towns(write(corpus, endpoint.url, tmp_path / "j")) == TOWNS


def test_a_limit_on_cost_is_never_passed(corpus: Corpus, tmp_path: Path) -> None:
    """A call costs 0.15 dollars here, but may cost the prompt's guess and 4,096 tokens out."""
    prices = {"price_in": 1000.0, "price_out": 1000.0, "workers": 4}
    with serving(good) as endpoint:
        dearest = write(corpus, endpoint.url, tmp_path / "j0", limits=Limits(calls=0, **prices))
        assert dearest.calls == 0
        # just room for the dearest call and two cheap ones
        limits = Limits(cost=5.2, **prices)
        written = write(corpus, endpoint.url, tmp_path / "j", limits=limits)
        assert written.stopped.startswith("--max-cost 5.2 may be passed")
        guess = float(written.stopped.rsplit(" ", 1)[1])
        assert 4.096 < guess < 5.2
        # calls under way are waited for, so the money is used up to the last call that fits
        assert written.calls == int((5.2 - guess) / 0.15 + 1e-9) + 1
        assert written.cost == pytest.approx(0.15 * written.calls)  # rounding of binary fractions
        assert write(corpus, endpoint.url, tmp_path / "j", limits=limits).new_calls == 0
    with pytest.raises(InputError, match="--price-in and --price-out"):
        Limits(cost=1.0)


def test_an_endpoint_that_hides_its_usage_is_taken_for_dear(corpus: Corpus, tmp_path: Path) -> None:
    def script(n: int, body: dict[str, Any]) -> Act:
        act = good(n, body)
        act.usage = None if n else {"prompt_tokens": -5, "completion_tokens": True}
        return act

    with serving(script) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j", only=2)
    prompt = sum(len(m["content"]) for m in endpoint.requests[0][1]["messages"])
    assert written.tokens[0] >= 2 * (prompt // 2)
    assert written.tokens[1] > 0


STRANGE = {
    "characters": [
        item("Avonmore", context="Writer number 0 \x1b[31mlived in one place."),
        item("Avonmore", context="Writer number 0 \u202e lived in one place."),
    ],
    "equal": [item("Avonmore", sentence_false="the birth had taken place there too, in AVONMORE")],
    "negation": [
        item("Avonmore", sentence_false="The birth had not taken place there too, in Avonmore.")
    ],
    "length": [item("Avonmore", sentence_false="The birth had taken place there, in Avonmore.")],
    "given-away": [item("Avonmore", context="Writer number 0 lived in Avonmore.")],
    "location": [
        item(
            "Avonmore",
            sentence_true="The birth had taken place there too, in Ohio.",
            sentence_false="The birth had taken place there too, in Iowa.",
        )
    ],
    "duplicate": [item("Avonmore"), item("Avonmore")],
}


@pytest.mark.parametrize("why", STRANGE)
def test_what_a_model_says_is_not_believed(why: str, corpus: Corpus, tmp_path: Path) -> None:
    odd = answer(*STRANGE[why])
    with serving(lambda n, b: odd if n == 0 else good(n, b)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j")
    kept = why == "duplicate"
    assert towns(written) == (TOWNS if kept else TOWNS[1:])
    assert written.rejected == {why: len(STRANGE[why]) - kept}


def test_no_more_questions_than_asked_for(corpus: Corpus, tmp_path: Path) -> None:
    many = [item("Avonmore", context=f"Writer number 0 was known to {n} people.") for n in range(4)]
    with serving(lambda n, b: answer(*many) if n == 0 else good(n, b)) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j", per_paragraph=3)
    assert len(written.questions) == 3 + 7
    assert written.rejected == {"too many": 1}


def test_one_hopeless_paragraph_is_given_up(corpus: Corpus, tmp_path: Path) -> None:
    def script(n: int, body: dict[str, Any]) -> Act:
        return Act("no") if town_of(body) == "Corrib" else good(n, body)

    with serving(script) as endpoint:
        written = write(corpus, endpoint.url, tmp_path / "j")
        assert written.given_up == 1
        assert towns(written) == [t for t in TOWNS if t != "Corrib"]
        assert write(corpus, endpoint.url, tmp_path / "j").new_calls == 0


def test_a_model_that_never_does_as_asked_is_not_paid_for_all(
    corpus: Corpus, tmp_path: Path
) -> None:
    with (
        serving(lambda n, b: Act("no")) as endpoint,
        pytest.raises(RunFailed, match="none of the first 5 paragraphs got a useful answer"),
    ):
        write(corpus, endpoint.url, tmp_path / "j", limits=Limits(tries=2, workers=1))
    assert len(endpoint.requests) == 10


def test_wrong_settings(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        *("localhost:8000", "http://127.0.0.1:99999/v1", "http://[::1/v1", "http://h:0/v1"),
        *("http://a..b/v1", "http:///v1", "ftp://h/v1"),
    ):
        with pytest.raises(InputError, match="it must be an address such as"):
            Settings("m", url)
    Settings("m", "http://[::1]:80/v1")
    with pytest.raises(InputError, match=r"no client can be made for the endpoint 999\.1\.1\.1 "):
        write(corpus, "http://999.1.1.1/v1", tmp_path / "j4")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        llm.write(corpus, Settings("m"), tmp_path / "j")
    with serving(good) as endpoint:  # an endpoint of one's own may need none
        assert towns(write(corpus, endpoint.url, tmp_path / "j2")) == TOWNS
    with pytest.raises(InputError, match="cannot be opened"):
        write(corpus, "http://127.0.0.1:1/v1", tmp_path / "no" / "j")
    (tmp_path / "short.txt").write_text("Too short.\n")
    with pytest.raises(InputError, match="no paragraph of 20 words"):
        write(read_text(["short.txt"], root=tmp_path), "http://127.0.0.1:1/v1", tmp_path / "j3")


@pytest.mark.long
def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 in the middle; then the same command asks for the rest and gives the same bytes."""
    (tmp_path / "text.txt").write_text(text())
    go = threading.Event()

    def script(n: int, body: dict[str, Any]) -> Act:
        act = good(n, body)
        act.hold = None if n < 3 or go.is_set() else go
        return act

    with serving(script) as endpoint:
        command = [
            *(
                sys.executable,
                "-m",
                "fortifai.cli",
                "kr",
                "build",
                "text.txt",
                "--out",
                "q.jsonl",
            ),
            *("--writer", "llm", "--model", "m", "--base-url", endpoint.url, "--workers", "2"),
        ]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        journal = tmp_path / "q.jsonl.journal.jsonl"
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
            assert time.monotonic() < deadline, "the run never wrote three answers"
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "q.jsonl").exists()
        go.set()
        asked = len(endpoint.requests)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(endpoint.requests) - asked == 8 - 3, "only what was not in the journal"
        assert KEY not in done.stdout + done.stderr + journal.read_text()
        first = (tmp_path / "q.jsonl").read_bytes()
    assert [q.location for q in read_rows(tmp_path / "q.jsonl")] == list(range(1, 9))
    # the server is gone
    (tmp_path / "q.jsonl").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY")
    replay = CliRunner().invoke(app, command[3:])
    assert "0 calls now, 8 in all" in replay.stdout
    assert (tmp_path / "q.jsonl").read_bytes() == first
