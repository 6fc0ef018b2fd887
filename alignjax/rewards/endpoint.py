"""Asks a judge with an OpenAI-compatible endpoint to compare two responses, in both orders.

The address is in the environment variable ``OPENAI_BASE_URL`` (by default OpenAI's own), the key in
``OPENAI_API_KEY``. Every answer is saved in a file, so no question is paid for twice, and an
interrupted comparison can continue.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.errors import UserError, naming_file

log = logging.getLogger("alignjax")

OPENAI = "https://api.openai.com/v1"
AT_ONCE = 8  # requests
TRIES, WAIT = 5, 1.0  # tries of a request; seconds after the first try, doubled after each
TIMEOUT = 120.0  # seconds
QUESTION = """Which response answers the prompt better? Judge helpfulness, correctness and \
relevance; length by itself is no merit. Reply with one letter: A, B, or T for a tie.

[Prompt]
{prompt}

[Response A]
{a}

[Response B]
{b}"""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A judge's answers about pairs of responses."""

    wins: np.ndarray  # [N] share that ours won over both orders: 0, 0.25, 0.5, 0.75 or 1
    consistent: float  # share of the pairs on which both orders agree
    unread: int  # answers that were neither A, B nor T; they count as ties
    tokens: dict[str, int]  # prompt and completion tokens of the new requests
    asked: int  # new requests; other answers were in the file


def judge_pairs(
    pairs: Sequence[tuple[str, str, str]], *, model: str, cache: pathlib.Path
) -> Judged:
    """Asks a model about pairs of responses, each in both orders.

    Args:
      pairs: ``(prompt, ours, theirs)``.
      model: the judge's name at the endpoint.
      cache: a file of JSON lines, to which every answer is added.

    Raises:
      UserError: the endpoint cannot be reached, refuses, or returns no chat completion.
    """
    orders = [x for prompt, a, b in pairs for x in ((prompt, a, b), (prompt, b, a))]
    questions = [QUESTION.format(prompt=p, a=a, b=b) for p, a, b in orders]
    known, tokens, lock = _read(cache), {"prompt": 0, "completion": 0}, threading.Lock()
    new = [q for q in dict.fromkeys(questions) if _key(model, q) not in known]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with naming_file(cache), cache.open("a", encoding="utf-8") as file:

        def ask(question: str) -> None:
            answer, used = _ask(model, question)
            with lock:
                for name in tokens:
                    tokens[name] += int(used.get(f"{name}_tokens", 0))
                known[_key(model, question)] = answer
                file.write(json.dumps({"key": _key(model, question), "said": answer}) + "\n")
                file.flush()

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(ask, question) for question in new]:
                done.result()
    verdicts = [_verdict(known[_key(model, q)]) for q in questions]
    first = np.array([0.5 if x is None else x for x in verdicts[0::2]])
    second = np.array([0.5 if x is None else 1 - x for x in verdicts[1::2]])
    return Judged(
        wins=(first + second) / 2,
        consistent=float((first == second).mean()),
        unread=verdicts.count(None),
        tokens=tokens,
        asked=len(new),
    )


def _verdict(answer: str) -> float | None:
    """Reads whether response A won: 1, 0, or 0.5 for a tie; None for any other answer."""
    letter = answer.strip().strip("[]().*\"'").upper()[:1]
    return {"A": 1.0, "B": 0.0, "T": 0.5}.get(letter)


def _key(model: str, question: str) -> str:
    return hashlib.sha256(json.dumps([model, question]).encode()).hexdigest()


def _read(cache: pathlib.Path) -> dict[str, str]:
    """Reads the saved answers; skips a line that a killed program left incomplete."""
    answers = {}
    if cache.is_file():
        for line in cache.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                answers[entry["key"]] = entry["said"]
            except (ValueError, KeyError, TypeError):
                continue
    return answers


def _ask(model: str, question: str) -> tuple[str, dict[str, Any]]:
    """Asks one question; tries again if the server is busy or fails."""
    address = os.environ.get("OPENAI_BASE_URL", OPENAI).rstrip("/") + "/chat/completions"
    if not address.startswith(("http://", "https://")):
        raise UserError(f"OPENAI_BASE_URL: wanted an http or https address, found {address!r}")
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 4,
    }
    headers = {"Content-Type": "application/json"}
    if os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    for attempt in range(TRIES):
        last = attempt == TRIES - 1
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                content = json.load(answer)
            return str(content["choices"][0]["message"]["content"] or ""), content.get("usage", {})
        except urllib.error.HTTPError as error:
            error.close()
            if last or (error.code not in (408, 409, 429) and error.code < 500):
                raise UserError(f"{address}: {error.code} {error.reason}") from None
        except (OSError, TimeoutError) as error:
            if last:
                raise UserError(f"{address}: cannot be reached ({error})") from None
        except (ValueError, KeyError, IndexError, TypeError):
            raise UserError(f"{address}: wanted a chat completion, found another form") from None
        time.sleep(WAIT * 2**attempt)
    raise AssertionError("the last try returns or raises")
