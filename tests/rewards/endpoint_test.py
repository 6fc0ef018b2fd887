"""A judge behind an address, here a small server: both orders, kept answers, failures, costs."""

import http.server
import json
import threading

import numpy as np
import pytest

from alignjax.commands import win_rates
from alignjax.errors import UserError
from alignjax.evaluation.win_rate import at_equal_length, of_shares
from alignjax.rewards import endpoint


class Server(http.server.ThreadingHTTPServer):
    """Prefers the response with more of the letter x; A where equal, so that orders disagree."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.failing, self.says = [], [], None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        code = self.server.failing.pop() if self.server.failing else 200
        text = body["messages"][0]["content"]
        a, b = text.partition("[Response A]")[2].split("[Response B]")
        said = self.server.says or ("B" if b.count("x") > a.count("x") else "[A].")
        answer = {
            "choices": [{"message": {"content": said}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 1},
        }
        self.send_response(code)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{made.server_port}/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(endpoint, "WAIT", 0.0)
    yield made
    made.shutdown()
    made.server_close()


PAIRS = [("p", "xx", "x"), ("p", "", "x"), ("q", "a", "b")]


def test_both_orders_are_asked_once_and_kept(server, tmp_path):
    found = endpoint.judge_pairs(PAIRS, model="m", cache=tmp_path / "judged.jsonl")
    assert found.wins.tolist() == [1.0, 0.0, 0.5]  # the last by its place alone
    assert found.consistent == pytest.approx(2 / 3)
    assert (found.asked, found.unread) == (6, 0)
    assert found.tokens == {"prompt": 60, "completion": 6}
    path, key, body = server.asked[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "m")
    again = endpoint.judge_pairs(PAIRS, model="m", cache=tmp_path / "judged.jsonl")
    assert (again.asked, again.wins.tolist()) == (0, [1.0, 0.0, 0.5])
    other = endpoint.judge_pairs(PAIRS[:1], model="n", cache=tmp_path / "judged.jsonl")
    assert other.asked == 2  # another judge's answers are its own


def test_what_was_answered_before_a_failure_is_not_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "AT_ONCE", 1)
    cache = tmp_path / "judged.jsonl"
    endpoint.judge_pairs(PAIRS[:1], model="m", cache=cache)
    cache.write_text(cache.read_text() + '{"key": "half')
    server.failing = [401]
    with pytest.raises(UserError, match=r"/v1/chat/completions: 401 Unauthorized$"):
        endpoint.judge_pairs(PAIRS, model="m", cache=cache)
    server.failing = [503, 429]  # busy: asked again
    found = endpoint.judge_pairs(PAIRS, model="m", cache=cache)
    assert found.wins.tolist() == [1.0, 0.0, 0.5]
    assert found.asked < 6


def test_an_answer_that_is_no_letter_is_a_tie_and_is_counted(server, tmp_path):
    server.says = "Certainly!"  # no A, B or T
    found = endpoint.judge_pairs(PAIRS[:1], model="m", cache=tmp_path / "j")
    assert (found.wins.tolist(), found.unread) == ([0.5], 2)


def test_an_address_that_is_none_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "file:///etc")
    with pytest.raises(UserError, match="wanted an http or https address"):
        endpoint.judge_pairs(PAIRS[:1], model="m", cache=tmp_path / "j")


def test_win_rates_of_two_files_by_a_judge_with_their_lengths(server, tmp_path, capsys):
    files = []
    for name, side in (("a", 1), ("b", 2)):
        rows = [{"prompt": f"{i}", "responses": [pair[side]]} for i, pair in enumerate(PAIRS)]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours, theirs = map(str, files)
    rates = win_rates.run(ours, theirs, judge="m", out=str(tmp_path / "out.json"))
    assert rates["m"].win_rate.mean == pytest.approx(0.5)
    assert rates["m"].ties.mean == pytest.approx(1 / 3)
    told = " ".join(capsys.readouterr().out.split())
    assert "6 requests (60 + 6 tokens), 0 answers from" in told
    assert "first responses are 1 characters long, against 1." in told
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["characters"] == pytest.approx([1.0, 1.0])
    assert 0 < written["win_rate_at_equal_length"] < 1


def test_a_win_rate_at_equal_length_takes_out_what_length_explains():
    """Wins drawn from sigmoid(a + b tanh(d / sd(d))): a is found, whatever the lengths are."""
    rng = np.random.default_rng(0)
    longer = rng.normal(60, 40, 20000)  # mostly longer, and longer wins
    chance = 1 / (1 + np.exp(-(-0.5 + 2 * np.tanh(longer / longer.std()))))
    wins = (rng.random(20000) < chance).astype(float)
    assert wins.mean() > 0.6
    assert at_equal_length(wins, longer) == pytest.approx(1 / (1 + np.exp(0.5)), abs=0.03)
    assert at_equal_length(wins, np.zeros(20000)) == pytest.approx(wins.mean(), abs=1e-3)


def test_shares_won_add_up():
    rate = of_shares(np.array([1.0, 0.75, 0.5, 0.0]))
    shares = [rate.wins.mean, rate.losses.mean, rate.ties.mean]
    assert shares == pytest.approx([0.375, 0.25, 0.375])
    assert rate.win_rate.mean == pytest.approx(0.5625)
