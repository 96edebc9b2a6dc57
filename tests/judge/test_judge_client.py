"""The endpoint and the asking, against a real server that misbehaves."""

import asyncio
import logging
import time
import traceback

import pytest

from fedsdr.core.errors import UserError
from fedsdr.core.progress import Bar
from fedsdr.judge.answers import ModelAnswer
from fedsdr.judge.asking import Budget, Prices, ask_all, estimate_cost, items_for
from fedsdr.judge.client import Endpoint, JudgeClient, RateLimiter, endpoint_from, host_of
from fedsdr.judge.journal import VerdictJournal
from fedsdr.judge.judging import check_endpoint
from fedsdr.judge.questions import JudgeQuestion
from support.chat_server import serving

CANARY = "sk-canary-6f1d2b7a9c"
QUESTIONS = [JudgeQuestion(str(i), "c", (f"question {i}",), ("",)) for i in range(6)]
A = {q.id: (ModelAnswer(f"one {q.id}"),) for q in QUESTIONS}
B = {q.id: (ModelAnswer(f"two {q.id}"),) for q in QUESTIONS}
BAR = Bar(None, None)


def endpoint(server, **options):
    quick = {"backoff": 0.002, "longest_backoff": 0.01, "timeout": 5.0, "retries": 3}
    return Endpoint(server.url, "judge", CANARY, **{**quick, **options})


def ask(server, folder, budget=None, judge=JudgeClient, **options):
    """Ask for both orders of six questions; the journal's rows."""
    place = endpoint(server, **options)
    items = items_for(QUESTIONS, A, B, place)
    journal = VerdictJournal(folder / "verdicts.jsonl")
    budget = budget or Budget(Prices(), None, place.max_tokens)
    ask_all(items, place, journal, budget, BAR, judge)
    return [journal.get(item.key) for item in items]


@pytest.fixture
def server():
    with serving(lambda messages: "Well. [[A]]") as running:
        yield running


FAULTS = [
    ("status", 429, {"Retry-After": "0.01"}, b'{"error": {"message": "slow down"}}'),
    ("status", 500, {}, b"oops"),
    ("status", 503, {}, b'{"error": {"message": "later"}}'),
    ("body", b"<html>not JSON</html>"),
    ("body", b'{"choices": []}'),
    ("body", b'{"error": "none"}'),
    ("drop",),
    ("hang", 0.6),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault[:2]))
def test_fleeting_faults_are_tried_again(server, tmp_path, fault):
    server.faults = [fault]
    timeout = 0.2 if fault[0] == "hang" else 5.0
    rows = ask(server, tmp_path, timeout=timeout, concurrency=1)
    assert [row["verdict"] for row in rows] == ["first"] * 12
    assert (len(server.asked), server.attempts) == (12, 13)


@pytest.mark.parametrize(
    "fault", [FAULTS[i] for i in (0, 1, 4, 6)], ids=lambda fault: str(fault[:2])
)
def test_what_does_not_pass_is_said_and_nothing_is_lost(server, tmp_path, fault):
    server.faults = [(), *[fault] * 4]
    with pytest.raises(UserError, match=r"'judge' at 127.0.0.1:\d+ fails after 4 attempts .*lost"):
        ask(server, tmp_path, concurrency=1)
    assert server.attempts == 5
    assert len(VerdictJournal(tmp_path / "verdicts.jsonl")._rows) == 1
    ask(server, tmp_path, concurrency=1)
    assert len(server.asked) == 12  # the first is not asked again


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b'{"error": {"message": "wrong key sk-canary-6f1d2b7a9c"}}'),
        (404, b'{"error": {"message": "no model judge"}}'),
        (400, b"bad"),
        (429, b'{"error": {"message": "no money", "code": "insufficient_quota"}}'),
    ],
)
def test_lasting_faults_are_not_tried_again(server, tmp_path, status, body):
    server.faults = [("status", status, {}, body)]
    with pytest.raises(UserError, match=f"fails .HTTP {status}"):
        ask(server, tmp_path, concurrency=1)
    assert server.attempts == 1


def waits(faults, **options):
    """How long one request waited after each of these failures."""
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    async def one(server):
        place = endpoint(server, **{"backoff": 1.0, "longest_backoff": 5.0, "retries": 6} | options)
        async with JudgeClient(place, sleep, clock=lambda: 0.0) as judge:
            return await judge.ask([{"role": "user", "content": "?"}])

    with serving(lambda messages: "[[A]]") as server:
        server.faults = list(faults)
        asyncio.run(one(server))
    return waited


def test_waits_grow_and_differ():
    busy = ("status", 500, {}, b"")
    first, second = waits([busy] * 5), waits([busy] * 5)
    for longest, waited in zip([1, 2, 4, 5, 5], first, strict=True):
        assert longest / 2 <= waited <= longest
    assert first != second


def test_retry_after_is_honoured_by_all():
    (own, pace) = waits([("status", 429, {"Retry-After": "7"}, b"")])
    assert own == 7
    assert pace == 7  # on the clock that stands still, nobody may start before
    date = {"Retry-After": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 9))}
    assert 6 < waits([("status", 503, date, b"")])[0] <= 9
    odd = {"Retry-After": "soon"}
    assert waits([("status", 503, odd, b"")])[0] <= 1


def test_a_pause_of_hours_ends_the_session():
    with pytest.raises(UserError, match=r"asks to wait 7200 s.*go on"):
        waits([("status", 429, {"Retry-After": "7200"}, b"")])


def test_the_pace_is_kept():
    now = 0.0
    pace = RateLimiter(120, lambda: now)
    assert [pace.reserve() for _ in range(3)] == [0.0, 0.5, 1.0]
    now = 10.0
    assert pace.reserve() == 0.0
    pace.hold(4)
    assert [pace.reserve(), pace.reserve()] == [4.0, 4.5]
    free = RateLimiter(0, lambda: now)
    assert [free.reserve(), free.reserve()] == [0.0, 0.0]


@pytest.mark.parametrize("bound", [1, 3])
def test_no_more_requests_at_a_time_than_allowed(server, tmp_path, bound):
    server.pause = 0.02
    ask(server, tmp_path, concurrency=bound)
    assert server.most_open == bound


def test_a_malformed_verdict_is_asked_again_and_then_counted(tmp_path):
    def reply(messages):
        asked = messages[1]["content"]
        again = messages[-1]["content"].startswith("Give your verdict alone")
        if "question 0" in asked:
            return "I cannot say."
        return "[[B]]" if again or "question 1" not in asked else "B, I think"

    with serving(reply) as server:
        rows = ask(server, tmp_path)
        assert [row["verdict"] for row in rows] == [None, None, *["second"] * 10]
        assert [row["replies"] for row in rows] == [3, 3, 2, 2, *[1] * 8]
        asked = len(server.asked)
        ask(server, tmp_path)
        assert len(server.asked) == asked  # it has been asked often enough


def test_a_journal_cut_short_goes_on(server, tmp_path):
    ask(server, tmp_path)
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    rows = ask(server, tmp_path)
    assert None not in rows
    assert len(server.asked) == 13
    ask(server, tmp_path)
    assert len(server.asked) == 13
    assert path.stat().st_mode & 0o077 == 0


def test_a_damaged_journal_is_named(tmp_path):
    (tmp_path / "v.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"v.jsonl is damaged .*delete it"):
        VerdictJournal(tmp_path / "v.jsonl")


def test_the_bound_on_the_cost_stops_before_it_is_passed(server, tmp_path):
    prices = Prices(10.0, 100.0)  # a verdict costs 100 and 10 tokens: 0.002
    budget = Budget(prices, 0.02, 60)
    with pytest.raises(UserError, match=r"--max-cost 0.02 is reached .*higher one"):
        ask(server, tmp_path, budget, concurrency=1, max_tokens=60)
    assert 0 < budget.spent <= 0.02
    kept = len(server.asked)
    assert budget.spent == pytest.approx(0.002 * kept)
    ask(server, tmp_path, max_tokens=60)
    assert len(server.asked) == 12


def test_the_estimate_is_of_the_texts(server):
    place = endpoint(server, max_tokens=100)
    items = items_for(QUESTIONS, A, None, place)
    cost = estimate_cost(items, place, Prices(2.0, 3.0))
    letters = sum(len(m["content"]) for item in items for m in item.messages)
    assert cost.prompt_tokens == pytest.approx(letters / 4 + 8 * 6, abs=6)
    assert cost.most == pytest.approx((2 * cost.prompt_tokens + 3 * 600) / 1e6)
    assert estimate_cost(items, place, Prices()).most is None


def test_what_is_sent(server, tmp_path):
    ask(server, tmp_path, max_tokens=77)
    body = server.asked[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("judge", 77, 0)
    ask(server, tmp_path, max_tokens=77, reasoning=True)
    body = server.asked[-1]
    assert body["max_completion_tokens"] == 77
    assert not {"max_tokens", "temperature"} & body.keys()
    assert server.keys == {f"Bearer {CANARY}"}


def test_the_key_is_nowhere(tmp_path, caplog):
    """Servers repeat it in errors and replies; logs are at their most talkative."""
    caplog.set_level(logging.DEBUG)
    told = []
    with serving(lambda messages: f"Your key is {CANARY}. [[A]]") as server:
        ask(server, tmp_path)
        echo = f'{{"error": {{"message": "bad key {CANARY}"}}}}'.encode()
        for fault in (("status", 401, {}, echo), ("status", 500, {}, echo), ("drop",)):
            server.faults = [fault] * 4
            with pytest.raises(UserError) as caught:
                ask(server, tmp_path, concurrency=1, max_tokens=9)
            error = caught.value
            told += [str(error), "".join(traceback.format_exception(error)), repr(error)]
            seen = error
            while seen is not None:  # not even in exceptions that nobody prints
                told += [str(seen), repr(vars(seen))]
                assert "openai" not in type(seen).__module__
                seen = seen.__cause__ or seen.__context__
        told.append(repr(endpoint(server)))
    files = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "Your key is [key]" in files
    assert "bad key [key]" in " ".join(told)
    for text in (files, caplog.text, *told):
        assert CANARY not in text


def test_an_endpoint_is_checked_before_any_work(server):
    check_endpoint(endpoint(server))
    server.http.RequestHandlerClass.do_GET = lambda self: self.send(401, b"no")
    with pytest.raises(UserError, match="HTTP 401"):
        check_endpoint(endpoint(server))
    server.http.RequestHandlerClass.do_GET = lambda self: self.send(404, b"no list here")
    check_endpoint(endpoint(server))  # not every server has a list of models


def test_a_server_that_is_not_there_is_named():
    with serving(lambda messages: "") as server:
        gone = endpoint(server)
    with pytest.raises(UserError, match=r"127.0.0.1:\d+ fails .*cannot be reached"):
        check_endpoint(gone)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/v1", "is not like https"),
        ("host/v1", "is not like https"),
        ("https://user:hunter22@host/v1", "holds credentials"),
        ("https://host/v1?api-key=hunter22", "holds credentials"),
        ("https://host:port/v1", "is not an address"),
    ],
)
def test_addresses_are_checked_and_secrets_in_them_not_repeated(url, message):
    with pytest.raises(UserError, match=message) as caught:
        endpoint_from({"OPENAI_API_KEY": "k"}, "OPENAI_API_KEY", url, "judge")
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "model", "message"),
    [
        ({}, "judge", "MY_KEY holds no key for api.openai.com"),
        ({"MY_KEY": " "}, "judge", "MY_KEY holds no key"),
        ({"MY_KEY": "schl\u00fcssel"}, "judge", "no HTTP header"),
        ({"MY_KEY": "k"}, "", "no judge is named: give --judge"),
    ],
)
def test_a_missing_key_or_judge_is_named(environment, model, message):
    with pytest.raises(UserError, match=message):
        endpoint_from(environment, "MY_KEY", "", model)


def test_the_host_is_all_that_is_told():
    assert host_of("https://api.example.com/v1") == "api.example.com"
    assert host_of("http://localhost:8000/v1") == "localhost:8000"


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'fedsdr\[judge\]'"):
        endpoint_from({"K": "k"}, "K", "", "judge")
