"""The judge of explanations, against a real HTTP server that answers by rule, limits rates, fails and refuses keys."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clsgen_dist.cli import main
from clsgen_dist.errors import ServerError, SettingsError
from clsgen_dist.evaluation.interval import wilson_interval
from clsgen_dist.inference import llm_judge
from clsgen_dist.inference.evaluate import evaluate
from clsgen_dist.inference.llm_judge import QUESTIONS, Judge, read_answer
from clsgen_dist.inference.report_sections import document
from clsgen_dist.inference.settings import JudgeSettings

KEY = "sk-of-a-test"


def by_rule(row: dict[str, str]) -> str:
    """A judge that only knows numbers and class names."""
    stated = set(re.findall(r"\d+", row["explanation"]))
    verdict = {
        "facts_in_row": stated <= set(re.findall(r"\d+", row["row"])),
        "supports_decision": row["decision"] in row["explanation"],
        "contradicts_row": "no mass" in row["explanation"] and "no mass" not in row["row"],
    }
    return json.dumps({name: "yes" if said else "no" for name, said in verdict.items()})


class Server:
    """Implements /v1/chat/completions; ``script`` holds (status, headers, body) for the first requests."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.script: list[tuple[int, dict[str, str], str]] = []
        self.answer = by_rule
        self.seconds = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
                time.sleep(outer.seconds)
                self.reply(*(outer.script.pop(0) if outer.script else outer.completion(self, body)))

            def reply(self, status: int, headers: dict[str, str], text: str) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.http.handle_error = lambda *args: None  # a client that has hung up
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def completion(self, handler, body) -> tuple[int, dict[str, str], str]:
        given = handler.headers.get("Authorization")
        if given != f"Bearer {KEY}":
            return 401, {}, json.dumps({"error": {"message": f"Incorrect API key provided: {given}"}})
        if handler.path != "/v1/chat/completions":
            return 404, {}, '{"detail": "Not Found"}'
        content = self.answer(json.loads(body["messages"][-1]["content"]))
        return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


@pytest.fixture
def server():
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(llm_judge, "_BACKOFF_SECONDS", 0.01)


ROWS = [
    ("a mass of 31 mm", "yes", "yes, as it has 31 mm"),
    ('she said: "ignore this", }"] and 7\nnew line', "no", "no, only 7"),
    ("a mass of 5 mm", "yes", "no: 6 mm, no mass"),
]


def judge_of(server, **settings) -> Judge:
    return Judge(JudgeSettings(**{"base_url": server.url, "model": "rules", "retries": 3, **settings}))


def test_shares_are_those_of_the_answers_and_requests_hold_the_row_as_data(server, tmp_path):
    found = judge_of(server, base_url=f"{server.url}/").opinions(ROWS, tmp_path / "judge.jsonl")
    assert (found.model, found.host, found.rows, found.unreadable) == ("rules", server.url[7:-3], 3, 0)
    expected = {"facts_in_row": 2, "supports_decision": 2, "contradicts_row": 1}
    for name, yes in expected.items():
        assert found.shares[name].value == pytest.approx(yes / 3)
        assert found.shares[name].interval == wilson_interval(yes, 3)
    assert [request["path"] for request in server.requests] == ["/v1/chat/completions"] * 3
    for request, (text, decision, explanation) in zip(server.requests, ROWS, strict=True):
        assert request["key"] == f"Bearer {KEY}" and request["temperature"] == 0 and request["model"] == "rules"
        system, user = request["messages"]
        assert all(question in system["content"] for question in QUESTIONS.values())
        assert text not in system["content"]
        assert json.loads(user["content"]) == {"row": text, "decision": decision, "explanation": explanation}


def test_rate_limits_and_passing_errors_are_tried_again(server, tmp_path):
    server.script = [(429, {"Retry-After": "0"}, "slow down"), (500, {}, ""), (503, {}, "busy")]
    found = judge_of(server).opinions(ROWS[:1], tmp_path / "judge.jsonl")
    assert len(server.requests) == 4 and found.shares["facts_in_row"].value == 1


def test_a_server_that_keeps_failing_ends_with_status_1_and_what_was_answered_is_kept(server, tmp_path):
    kept = tmp_path / "judge.jsonl"
    judge_of(server).opinions(ROWS[:2], kept)
    with kept.open("a") as file:
        file.write('\n{"key": "torn')
    server.script = [(500, {}, "out of\nmemory")] * 10
    with pytest.raises(
        ServerError, match=r"^the judge at .* status 500 in 4 tries \(out of memory\); run the command again"
    ) as caught:
        judge_of(server).opinions(ROWS, kept)
    assert caught.value.exit_code == 1 and len(server.requests) == 2 + 4
    server.script = []
    assert judge_of(server).opinions(ROWS, kept).rows == 3
    assert len(server.requests) == 2 + 4 + 1, "two answers were there"
    assert judge_of(server).opinions(ROWS, kept).shares["contradicts_row"].value == pytest.approx(1 / 3)
    assert len(server.requests) == 7
    judge_of(server, model="another").opinions(ROWS[:1], kept)
    assert len(server.requests) == 8, "another model is asked anew"


def test_answers_other_than_yes_or_no_to_each_are_counted_as_unreadable(server, tmp_path):
    answers = iter(["I think so.", by_rule(dict(zip(("row", "decision", "explanation"), ROWS[1], strict=True))), '{"a'])
    server.answer = lambda row: next(answers)
    found = judge_of(server).opinions(ROWS, tmp_path / "judge.jsonl")
    assert (found.rows, found.unreadable) == (3, 2)
    assert found.shares["facts_in_row"].interval == wilson_interval(1, 1)
    server.answer = lambda row: "no"
    found = judge_of(server).opinions(ROWS, tmp_path / "other.jsonl")
    assert found.unreadable == 3 and found.shares["facts_in_row"].value != found.shares["facts_in_row"].value


@pytest.mark.parametrize(
    ("content", "readable"),
    [
        ('```json\n{"facts_in_row": "Yes", "supports_decision": "no", "contradicts_row": " no"}\n```', True),
        ('Let me see. {"facts_in_row": "yes", "supports_decision": "no", "contradicts_row": "no"}', True),
        ('{"facts_in_row": "yes", "supports_decision": "no"}', False),
        ('{"facts_in_row": "yes or no", "supports_decision": "no", "contradicts_row": "no"}', False),
        ('{"facts_in_row": 1, "supports_decision": "no", "contradicts_row": null}', False),
        ("yes, no, no", False),
        ("}{", False),
        ("None", False),
    ],
)
def test_an_answer_is_one_object_with_yes_or_no_to_each_question(content, readable):
    expected = {"facts_in_row": True, "supports_decision": False, "contradicts_row": False}
    assert read_answer(content) == (expected if readable else None)


def test_a_refused_key_is_an_error_that_does_not_repeat_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(
        SettingsError, match=r"^the judge at .* status 401 .*OPENAI_API_KEY is a key of 8 characters"
    ) as caught:
        judge_of(server).opinions(ROWS, tmp_path / "judge.jsonl")
    assert "sk-wrong" not in str(caught.value) and len(server.requests) == 1
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SettingsError, match="OPENAI_API_KEY is not set, expected a key of this server"):
        judge_of(server).opinions(ROWS, tmp_path / "judge.jsonl")
    assert server.requests[-1]["key"] is None


def test_the_key_is_the_environments_whatever_netrc_holds(server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    judge_of(server).opinions(ROWS[:1], tmp_path / "judge.jsonl")
    assert server.requests[0]["key"] == f"Bearer {KEY}"


def test_an_address_of_something_else_is_an_error(server, tmp_path):
    def ask(**settings):
        judge_of(server, **settings).opinions(ROWS, tmp_path / "judge.jsonl")

    with pytest.raises(
        SettingsError, match=r"^the judge at .* status 404 .*Not Found.* check --judge.base_url .*and --judge.model"
    ):
        ask(base_url=server.url.removesuffix("/v1"))
    server.script = [(200, {}, "<html>Welcome</html>")]
    with pytest.raises(
        SettingsError,
        match=r"^http://.*/v1/chat/completions answered '<html>Welcome</html>', expected a chat completion",
    ):
        ask()
    server.script = [(307, {"Location": f"{server.url}/elsewhere"}, "")]
    with pytest.raises(SettingsError, match="answered status 307"):
        ask()
    assert server.requests[-1]["path"] == "/v1/chat/completions", "the redirect was not followed"
    for url in ("localhost:8000/v1", "ftp://x/v1", "http://", "", "http://a b/v1"):
        with pytest.raises(SettingsError, match="expected an address such as http://localhost:8000/v1"):
            judge_of(server, base_url=url)
    with pytest.raises(SettingsError, match=r"--judge\.model is empty"):
        judge_of(server, model="")
    assert judge_of(server, base_url="https://me:secret@host.example/v1").host == "host.example"


def test_a_server_that_is_down_or_slow_is_an_error_after_all_tries(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match=rf"no answer from the judge at 127.0.0.1:{port} in 2 tries .*start the serv"):
        judge_of(server, base_url=f"http://127.0.0.1:{port}/v1", retries=1).opinions(ROWS, tmp_path / "judge.jsonl")
    server.seconds = 0.5
    with pytest.raises(ServerError, match="no answer"):
        judge_of(server, timeout=0.1, retries=1).opinions(ROWS, tmp_path / "judge.jsonl")
    assert len(server.requests) == 2


@pytest.mark.usefixtures("few_resamples")
def test_an_evaluation_reports_who_judged_and_a_second_one_asks_nothing(server, folder, tmp_path):
    data = tmp_path / "rows.jsonl"
    cells = [{"text": f"note {n}: {n} mm", "label": ("no", "yes")[n % 2]} for n in range(30)]
    data.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    settings = JudgeSettings(base_url=server.url, model="rules", rows=8)
    found = evaluate(folder, str(data), judge=settings, output=tmp_path / "report")
    assert len(server.requests) == found.judge.rows == 8
    asked = [json.loads(request["messages"][-1]["content"]) for request in server.requests]
    by_text = {e.text: p for e, p in zip(found.examples, found.predictions, strict=True)}
    assert all(
        (by_text[a["row"]].label, by_text[a["row"]].explanation) == (a["decision"], a["explanation"]) for a in asked
    )
    expected = [json.loads(by_rule(row)) for row in asked]
    written = json.loads((tmp_path / "report/report.json").read_text())["judge"]
    for name in QUESTIONS:
        assert written["shares"][name]["value"] == sum(answer[name] == "yes" for answer in expected) / 8
    page = (tmp_path / "report/report.md").read_text()
    assert f"rules at {server.url[7:-3]} was asked about 8 rows" in page
    assert "A judge's opinion is no measurement" in page and KEY not in page
    assert "judge" in [section.name for section in document(found).sections]
    again = evaluate(folder, str(data), judge=settings, output=tmp_path / "report")
    assert len(server.requests) == 8 and again.judge == found.judge
    with pytest.raises(SettingsError, match="--explain is false"):
        evaluate(folder, str(data), judge=settings, explain=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge.base_url", "localhost:8000"], "--judge.base_url is 'localhost:8000', expected an address"),
        (["--judge.base_url", "http://localhost:8000/v1"], "--judge.model is empty"),
        (["--judge.model", "m", "--judge.rows", "0"], "--judge.rows is 0, expected more than 0"),
        (["--judge.url", "http://localhost:8000/v1"], "unknown option --judge.url; did you mean --judge.base_url?"),
    ],
)
def test_the_command_refuses_wrong_options_before_it_opens_the_model(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--model", "none", "--data", "none", *options])
    assert message in capsys.readouterr().err
