"""Rows token by token: what of a dialogue is trained, and what of two sides is compared."""

import json

from alignjax.data import shown, sources
from alignjax.data.encode import encode
from alignjax.data.records import DataReport, check
from alignjax.data.tokenizer import load
from tests import runs

STORY = runs.ROOT / "tests" / "parity" / "data" / "story"
HELLO = {"role": "user", "content": "Hi"}


def told(path, rows, **options):
    """Every response of the rows that are kept, as `data --show=tokens` shows it, by id."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, report = load.load(str(STORY)), DataReport()
    records = check(sources.auto(report, path=str(path), **options), report)
    encoded = encode(
        records, tokenizer, max_prompt_tokens=99, max_response_tokens=99, report=report
    )
    return [
        (row.record.id.rpartition(":")[2], shown.tokens(tokenizer, row.prompt_ids, x, colour=False))
        for row in encoded
        for x in row.response_ids
    ]


ASSISTANT = r"<|im_start|>|as|s|i|st|an|t|\n|"
GREETING = r"<|im_start|>|us|e|r|\n|H|i|<|im_end|>|\n|" + ASSISTANT
KIND = r"<|im_start|>|s|y|st|e|m|\n|B|e| |k|in|d|.|<|im_end|>|\n|" + GREETING
CAPITAL = (
    KIND
    + r"H|e|ll|o|!|<|im_end|>|\n|<|im_start|>|us|e|r|\n|"
    + r"C|a|p|i|t|a|l| o|f| |M|a|l|i|?|<|im_end|>|\n|"
    + ASSISTANT
)
PLEASE = (
    GREETING
    + r"G|o| a|w|a|y|.|<|im_end|>|\n|<|im_start|>|us|e|r|\n|P|l|eas|e|?|<|im_end|>|\n|"
    + ASSISTANT
)
# As in the two rows of a published kind: several turns, and a turn that is not to be learned.
ROWS = [
    {"messages": [{"role": "system", "content": "Be kind."}, HELLO,
                  {"role": "assistant", "content": "Hello!"},
                  {"role": "user", "content": "Capital of Mali?"},
                  {"role": "assistant", "content": "Bamako."}]},
    {"messages": [HELLO, {"role": "assistant", "content": "Go away.", "weight": 0},
                  {"role": "user", "content": "Please?"},
                  {"role": "assistant", "content": "Sorry, hello.", "weight": 1}]},
]  # fmt: skip
BAMAKO = CAPITAL + "[B][a][m][ak][o][.][<|im_end|>]"
SORRY = PLEASE + "[S][or][r][y][,][ ][h][e][ll][o][.][<|im_end|>]"


def test_every_turn_of_the_assistant_is_trained_unless_its_weight_is_0(tmp_path):
    assert told(tmp_path / "all.jsonl", ROWS) == [
        ("1#1", KIND + "[H][e][ll][o][!][<|im_end|>]"),
        ("1#2", BAMAKO),
        ("2", SORRY),
    ]
    assert told(tmp_path / "last.jsonl", ROWS, turns="last") == [("1", BAMAKO), ("2", SORRY)]


def test_two_sides_that_share_turns_are_compared_in_the_one_that_differs(tmp_path):
    shared = ROWS[0]["messages"][:-1]
    sides = {
        side: [*shared, {"role": "assistant", "content": text}]
        for side, text in (("chosen", "Bamako."), ("rejected", "Lagos."))
    }
    assert told(tmp_path / "pair.jsonl", [sides]) == [
        ("1", BAMAKO),
        ("1", CAPITAL + "[L][a][g][o][s][.][<|im_end|>]"),
    ]


def test_colour_is_beside_the_brackets():
    tokenizer = load.load(str(STORY))
    ids = tokenizer.encode("Hi", ["o"])
    found = shown.tokens(tokenizer, ids.prompt_ids, ids.response_ids[0], colour=True)
    assert found == "H|i|\x1b[32m[o][<|im_end|>]\x1b[0m"


def test_show_takes_text_or_tokens():
    said = runs.refused("data", "--config=configs/demo/dpo.py", "--show=ids")
    assert said == "--show: wanted text or tokens, found 'ids'"
