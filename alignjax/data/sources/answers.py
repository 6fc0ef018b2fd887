"""Makes records from a row with known columns: pairs, lists, single responses, dialogues."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alignjax.data.files import Row
from alignjax.data.records import DataError, DataReport, Message, Record
from alignjax.data.sources.asked import (
    Options,
    join,
    read_answer,
    read_asked,
    without_answer,
)
from alignjax.data.sources.columns import Found, number_of
from alignjax.data.sources.dialogues import HUMAN, split_texts
from alignjax.data.sources.messages import (
    DroppedRowError,
    parse_dialogue,
    parse_json,
    read_messages,
    split_last,
)
from alignjax.data.sources.names import BAD_LABELS, plain_name
from alignjax.data.sources.scored import read_scores

_YES = (True, 1, "true", "yes", "1", "good", "desirable", "chosen", "positive", "like", "upvote")
_NO = (False, 0, "false", "no", "0", "bad", "undesirable", "rejected", "negative", "dislike", -1)
_TIES = ("tie", "both", "equal", "same", "neither", "none", "draw", "bothbad", "tie(bothbad)")
_SCORES = (
    ("score", 1),
    ("overall_score", 1),
    ("rating", 1),
    ("reward", 1),
    ("pm_score", 1),
    ("rank", -1),
)
Answer = tuple[tuple[Message, ...] | None, Message]  # turns before (None for a text), the turn


def read(report: DataReport, row: Row, found: Found, options: Options) -> list[Record]:
    """Reads a flat row: one record, or one for each trained turn of a dialogue.

    Raises:
      DroppedRowError: the row cannot be used.
      DataError: the row is malformed.
    """
    kinds = {"pair": _pair, "choice": _choice, "list": _list, "response": _response}
    if found.kind == "dialogue":
        return _dialogue(report, row, found, options)
    if found.kind == "prompt":
        return [_record(report, row, found, options, [], prompt_alone=True)]
    return kinds[found.kind](report, row, found, options)


def _record(
    report: DataReport,
    row: Row,
    found: Found,
    options: Options,
    answers: Sequence[Answer],
    **fields: Any,
) -> Record:
    """Makes a record of responses; the prompt is in the row's columns or in the answers' turns."""
    contexts = [context for context, _ in answers if context]
    as_message = any(context is not None for context, _ in answers)
    asked = read_asked(report, row, found, options, as_message=as_message)
    turns = [turn for _, turn in answers]
    asked = prompt = without_answer(row, found, asked, turns)
    for context in contexts:
        if context != contexts[0]:
            raise DroppedRowError(
                "context_mismatch", f"{row.origin}: the responses differ before their last message"
            )
    if contexts:
        prompt = join(row, asked, contexts[0])
    more = tuple(turn.more for turn in turns)
    domain = row.text(found.names["domain"]) if "domain" in found.names else ""
    return Record(
        id=row.id,
        origin=row.origin,
        prompt=prompt,
        responses=tuple(turn.content for turn in turns),
        more=more if any(more) else (),
        **{"domain": domain, **fields},
    )


def _pair(report: DataReport, row: Row, found: Found, options: Options) -> list[Record]:
    names = found.names
    if "chosen" not in names:  # the chosen response is the last turn of the dialogue
        turns = read_messages(row, names["dialogue"])
        before, last = split_last(row, names["dialogue"], turns)
        shared, other = read_answer(row, names["rejected"])
        if shared and _spoken(shared) != _spoken(before):
            raise DroppedRowError(
                "context_mismatch", f"{row.origin}: the two sides differ before their last message"
            )
        found = replace(found, names={r: n for r, n in names.items() if r != "dialogue"})
        return [_record(report, row, found, options, [(before, last), (None, other)])]
    sides = [row.fields[names[side]] for side in ("chosen", "rejected")]
    if any(isinstance(side, list) and side and isinstance(side[0], str) for side in sides):
        return _several(report, row, found, options)
    answers = [read_answer(row, names[side]) for side in ("chosen", "rejected")]
    if all(context is None for context, _ in answers):
        texts = [turn.content for _, turn in answers]
        dialogues = all(x.startswith(HUMAN) and options.marker in x for x in texts)
        if not {"prompt", "dialogue"} & set(names) or (dialogues and _is_plain(row, found)):
            _check_repeated(row, found, texts[0])
            record = split_texts(report, row, texts, options.marker, chat=bool(options.chat))
            named = row.text(names["domain"]) if "domain" in names else ""
            return [replace(record, domain=named)] if record else []
    domain = {"domain": row.stem} if "matching_behavior" in plain_name(names["chosen"]) else {}
    return [_record(report, row, found, options, answers, **domain)]


def _several(report: DataReport, row: Row, found: Found, options: Options) -> list[Record]:
    """Reads lists of preferred and other texts: a pair of one each, else a scored list."""
    answers: list[Answer] = []
    values = []
    for side in ("chosen", "rejected"):
        key = found.names[side]
        texts = row.items(key) if isinstance(row.fields[key], list) else [row.text(key)]
        answers += [_entry(row, f"{key}[{i}]", x) for i, x in enumerate(texts)]
        values += [int(side == "chosen")] * len(texts)
        if not texts:
            raise DroppedRowError("empty_response", f"{row.origin}: field {key!r} is an empty list")
    return _ordered(report, row, found, options, answers, values, "chosen")


def _is_plain(row: Row, found: Found) -> bool:
    """Whether the row has a plain-text prompt and nothing else before the responses."""
    rest = set(found.names) - {"chosen", "rejected", "domain"}
    return rest == {"prompt"} and isinstance(parse_dialogue(row.fields[found.names["prompt"]]), str)


def _check_repeated(row: Row, found: Found, side: str) -> None:
    """Raises DroppedRowError if a dialogue does not contain the row's prompt."""
    if "prompt" in found.names and row.text(found.names["prompt"]).strip() not in side:
        raise DroppedRowError(
            "prompt_mismatch", f"{row.origin}: the prompt differs from the dialogues' beginning"
        )


def _spoken(turns: Sequence[Message]) -> list[Message]:
    return [turn for turn in turns if turn.role not in ("system", "tools")]


def _choice(report: DataReport, row: Row, found: Found, options: Options) -> list[Record]:
    """Reads responses from numbered columns, and the column that says which is better."""
    key = found.names["preferred"]
    value = parse_json(row, key, row.fields[key]) if str(row.fields[key])[:1] == "[" else ""
    answers = [read_answer(row, name) for name in found.numbered]
    if isinstance(value or row.fields[key], list):
        wins = _wins(row, key, value or row.fields[key], len(answers))
        scores = tuple((float(x),) for x in wins)
        return [_record(report, row, found, options, answers, scores=scores, objectives=(key,))]
    if len(answers) != 2:
        raise row.wrong(key, row.fields[key], f"a list, for {len(answers)} responses")
    first = _preferred(row, key, found.numbered)
    return [_record(report, row, found, options, [answers[first], answers[1 - first]])]


def _preferred(row: Row, key: str, columns: Sequence[str]) -> int:
    """Returns which of two columns the column ``key`` prefers: 0 or 1.

    Raises:
      DroppedRowError: it prefers neither.
    """
    value, name = row.fields[key], plain_name(key)
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    places = [number_of(column) for column in columns]
    if isinstance(value, str):
        last = value.strip().lower()
        tie = re.sub("[ _-]", "", last) in _TIES
        last = "tie" if tie else plain_name(last).rpartition("_")[2]
        index = [0, 1] if last == "tie" else [i for i, x in enumerate(places) if x == last]
    elif name in ("overall_preference", "preference_strength"):
        index = [0, 1] if value == 0 else [int(value > 0)]
    elif name in ("label", "labels") and plain_name(columns[0]) == "human_ref_a":  # SHP's
        index = [0] if value == 1 else [1] if value == 0 else []
    elif name == "preference" and value == 0 and places == ["1", "2"]:
        index = [0, 1]
    else:
        index = [i for i, x in enumerate(places) if x == str(value)]
    if len(index) == 2:
        raise DroppedRowError("tie", f"{row.origin}: column {key!r} prefers neither response")
    if not index:
        known = ", ".join(places)
        raise DataError(f"{row.origin}: field {key!r}: wanted one of {known}, found {value!r}")
    return index[0]


def _wins(row: Row, key: str, labels: Sequence[Any], count: int) -> list[int]:
    """Counts wins minus losses; the labels of (1, 2), (1, 3), ... are 1, 2, or 0 for a tie."""
    pairs = list(itertools.combinations(range(count), 2))
    if len(labels) != len(pairs) or any(label not in (0, 1, 2) for label in labels):
        raise DataError(
            f"{row.origin}: field {key!r}: wanted {len(pairs)} labels, 0 (equal), 1 or 2, for the "
            f"pairs of {count} responses, found {labels!r}"
        )
    wins = [0] * count
    for (first, second), label in zip(pairs, labels, strict=True):
        sign = {0: 0, 1: 1, 2: -1}[label]
        wins[first] += sign
        wins[second] -= sign
    return wins


def _list(report: DataReport, row: Row, found: Found, options: Options) -> list[Record]:
    """Reads a list of responses with scores, ranks or labels, from columns or from its entries."""
    names = found.names
    if found.numbered:
        answers = [read_answer(row, name) for name in found.numbered]
        values = [row.fields[name] for name in found.attributes]
        return _scored(report, row, found, options, answers, values, "score")
    key = names["responses"]
    items = parse_json(row, key, row.fields[key])
    if not isinstance(items, list):
        raise row.wrong(key, items, "a list")
    answers = [_entry(row, f"{key}[{i}]", item) for i, item in enumerate(items)]
    for role in ("scores", "ranks"):
        if role in names:
            values = parse_json(row, names[role], row.fields[names[role]])
            if not isinstance(values, list):
                raise row.wrong(names[role], values, "a list")
            sign = 1 if role == "scores" else -1
            return _scored(report, row, found, options, answers, values, names[role], sign)
    if "label" in names:
        labels = tuple(_label(row, names["label"], x) for x in row.items(names["label"]))
        return [_record(report, row, found, options, answers, desirable=labels)]
    if "preferred" in names:
        best = row.fields[names["preferred"]]
        if best not in range(len(answers)):
            raise DataError(f"{row.origin}: field {names['preferred']!r}: wanted the index of one "
                            f"of {len(answers)} responses, found {best!r}")  # fmt: skip
        values = [int(i == best) for i in range(len(answers))]
        return _ordered(report, row, found, options, answers, values, names["preferred"])
    for name, sign in _SCORES if items else ():
        if all(isinstance(item, dict) and name in item for item in items):
            values = [item[name] for item in items]
            return _scored(report, row, found, options, answers, values, name, sign)
    if plain_name(key) in ("output", "response", "completion", "answer"):  # best first
        values = [-i for i in range(len(answers))]
        return _ordered(report, row, found, options, answers, values, "place")
    raise DataError(
        f"{row.origin}: column {key!r} holds responses, but no column scores or ranks them; name "
        "one: --set data.columns.scores=... or data.columns.ranks=..."
    )


def _entry(row: Row, key: str, item: Any) -> Answer:
    """Reads a response of a list: text, a message, messages, or an object with one of these."""
    return read_answer(replace(row, fields={**row.fields, key: item}), key)


def _ordered(
    report: DataReport, row: Row, found: Found, options: Options,
    answers: list[Answer], values: list[int], name: str,
) -> list[Record]:  # fmt: skip
    """Makes a supervised row of one response, a pair of two (the better first), a list of more."""
    if len(answers) > 2:
        return _scored(report, row, found, options, answers, values, name)
    order = sorted(range(len(answers)), key=lambda i: -values[i])
    return [_record(report, row, found, options, [answers[i] for i in order])]


def _scored(
    report: DataReport, row: Row, found: Found, options: Options,
    answers: list[Answer], values: list[Any], name: str, sign: int = 1,
) -> list[Record]:  # fmt: skip
    """Makes a list with scores; responses without a score are left out, and the row is noted."""
    if len(values) != len(answers):
        raise DataError(
            f"{row.origin}: field {name!r} has {len(values)} entries for {len(answers)} responses"
        )
    objectives, table = read_scores(row, name, [_as_number(x) for x in values], ())
    kept = [i for i, numbers in enumerate(table) if numbers is not None]
    if not kept:
        raise DroppedRowError("no_scores", f"{row.origin}: no response has a score")
    if len(kept) < len(answers):
        report.warn("removed_null_scores", row.id)
    scores = tuple(tuple(sign * x for x in table[i] or ()) for i in kept)
    chosen = [answers[i] for i in kept]
    return [_record(report, row, found, options, chosen, scores=scores, objectives=objectives)]


def _as_number(value: Any) -> Any:
    """Converts text in CSV files to a number, "N/A" to null; returns other values unchanged."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() in ("", "n/a", "na", "none", "null"):
        return None
    try:
        return float(value)
    except ValueError:
        return value


def _response(report: DataReport, row: Row, found: Found, options: Options) -> list[Record]:
    """Reads one response: labelled, scored or supervised."""
    names, key = found.names, found.names["response"]
    answer = read_answer(row, key)
    if "dialogue" in names:
        turns = read_messages(row, names["dialogue"])
        if turns and turns[-1].role == "assistant":
            if turns[-1].content != answer[1].content:
                raise DataError(
                    f"{row.origin}: columns {names['dialogue']!r} and {key!r} end in different "
                    f"responses; choose one: --set data.columns.response={key} with "
                    "data.columns.prompt, or remove one"
                )
            answer = (turns[:-1], turns[-1])
            found = replace(found, names={r: n for r, n in names.items() if r != "dialogue"})
            names = found.names
    if "label" in names:
        label = _label(row, names["label"], row.fields[names["label"]])
        return [_record(report, row, found, options, [answer], desirable=(label,))]
    values: Any = {name: row.fields[name] for name in found.attributes}
    if "scores" in names:
        values = _as_number(row.fields[names["scores"]])
    if values != {}:
        objectives, (numbers,) = read_scores(row, names.get("scores", "scores"), [values], ())
        if numbers is None:
            raise DroppedRowError("no_scores", f"{row.origin}: the response has no score")
        scored: dict[str, Any] = dict(scores=(numbers,), objectives=objectives)
        return [_record(report, row, found, options, [answer], **scored)]
    record = _record(report, row, found, options, [answer])
    if "history" in names and isinstance(record.prompt, tuple):
        last = Message("assistant", *record.responses, *record.more)
        return _supervised(report, row, (*record.prompt, last), options, record)
    return [record]


def _dialogue(report: DataReport, row: Row, found: Found, options: Options) -> list[Record]:
    """Reads a dialogue: its last turn has a label, or the assistant's turns are trained."""
    turns = read_asked(report, row, found, options, as_message=True)
    assert isinstance(turns, tuple)
    key = found.names["dialogue"]
    if options.prompts_alone and turns and turns[-1].role != "assistant":
        return [_record(report, row, found, options, [], prompt_alone=True)]
    if "label" in found.names:
        before, last = split_last(row, key, turns)
        label = _label(row, found.names["label"], row.fields[found.names["label"]])
        bare = replace(found, names={r: n for r, n in found.names.items() if r == "domain"})
        return [_record(report, row, bare, options, [(before, last)], desirable=(label,))]
    domain = row.text(found.names["domain"]) if "domain" in found.names else ""
    like = Record(id=row.id, origin=row.origin, prompt="", responses=(), domain=domain)
    return _supervised(report, row, turns, options, like)


def _supervised(
    report: DataReport, row: Row, turns: tuple[Message, ...], options: Options, like: Record
) -> list[Record]:
    """Makes a record for each trained turn of the assistant; its prompt is all turns before."""
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers or (turns[-1].role != "assistant" and not options.all_turns):
        split_last(row, "messages", turns)  # raises
    trained = [i for i in answers if turns[i].fields().get("weight", 1)]
    trained = trained if options.all_turns else [i for i in trained if i == len(turns) - 1]
    places = [i for i in trained if any(turn.role == "user" for turn in turns[:i])]
    if not places:
        raise DroppedRowError(
            "no_trained_turn", f"{row.origin}: no assistant turn that follows a user's is trained"
        )
    if len(places) < len(trained):
        report.warn("untrained_opening", row.id)
    if turns[-1].role != "assistant":
        report.warn("unanswered_turn", row.id)
    records = []
    for count, i in enumerate(places, 1):
        more = turns[i].more
        records.append(
            replace(
                like,
                id=row.id if len(places) == 1 else f"{row.id}#{count}",
                prompt=turns[:i],
                responses=(turns[i].content,),
                more=(more,) if more else (),
                root=turns[: places[0]] if count > 1 else "",
            )
        )
    return records


def _label(row: Row, key: str, value: Any) -> bool:
    """Reads a label: a boolean, 0 or 1, or a word; in columns like ``toxic``, yes is bad."""
    plain = value.strip().lower() if isinstance(value, str) else value
    if plain not in _YES and plain not in _NO:
        raise DataError(
            f"{row.origin}: field {key!r}: wanted true or false, 1 or 0, 'yes' or 'no', "
            f"'desirable' or 'undesirable', found {json.dumps(value)}"
        )
    return (plain in _YES) != (plain_name(key) in BAD_LABELS)
