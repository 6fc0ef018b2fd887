"""The names that published data sets give their columns, by role."""

import functools
import re

# Names by `plain_name`. A role has groups of names; a later group counts if no earlier one fits.
DIALOGUES = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog")
NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "prompt": (
        ("prompt", "question", "instruction", "query", "user_query", "user_prompt", "problem"),
        ("input", "context", "history", "post", "full_text", "user", "human"),
    ),
    "dialogue": ((*DIALOGUES, "trajectory", "context_messages", "turns"),),
    "system": (("system", "system_prompt", "system_message"),),
    "tools": (("tools", "functions"),),
    "history": (("history",),),
    "context": (("input", "context"),),
    "response": (
        ("completion", "response", "output", "answer", "generation", "system_output", "solution"),
        ("model_response", "chatgpt_response", "model_output", "reply"),
    ),
    "responses": (
        ("responses", "completions", "generations", "answers", "candidates", "summaries"),
        ("output", "response", "completion", "answer"),
    ),
    "scores": (
        ("scores", "ratings", "rating", "score", "reward", "rewards", "overall_score", "quality"),
    ),
    "ranks": (("ranks", "rank", "ranking", "rankings"),),
    "label": (
        ("label", "labels", "kto_tag", "desirable", "is_desirable", "is_safe", "is_good"),
        ("hallucination", "is_hallucination", "toxic", "is_toxic", "is_harmful", "is_unsafe"),
    ),
    "preferred": (
        ("better_response_id", "safer_response_id", "winner", "preference", "overall_preference"),
        ("preference_strength", "preferred", "choice", "chosen", "best", "labels", "label"),
    ),
}
INSIDE = {name for role in ("prompt", "dialogue", "response") for name in NAMES[role][0]}
INSIDE |= {"full_text", "post"}
LISTS = {x for role in ("responses", "scores", "ranks", "history") for x in NAMES[role][0]}
BAD_LABELS = NAMES["label"][1]  # in these, yes means undesirable
PLAIN_PROMPTS = ("prompt", "source", "text")  # continued as text; others are a user's message
PAIRS = (
    *(("chosen", "rejected"), ("preferred", "dispreferred"), ("preferred", "rejected")),
    *(("chosen_response", "rejected_response"), ("chosen_messages", "rejected_messages")),
    *(("response_chosen", "response_rejected"), ("chosen_answer", "rejected_answer")),
    *(("preferred_output", "non_preferred_output"), ("answer_chosen", "answer_rejected")),
    *(("preferred_response", "dispreferred_response"), ("good", "bad"), ("better", "worse")),
    *(("preferred_response", "rejected_response"), ("good_response", "bad_response")),
    *(("better_response", "worse_response"), ("positive", "negative"), ("win", "lose")),
    *(("winner", "loser"), ("accepted", "rejected"), ("accept", "reject"), ("pos", "neg")),
    *(("response_j", "response_k"), ("chosen_text", "rejected_text")),
    *(("chosen_output", "rejected_output"), ("chosen_completion", "rejected_completion")),
    *(("chosen_conversation", "rejected_conversation"), ("text_chosen", "text_rejected")),
    ("answer_matching_behavior", "answer_not_matching_behavior"),
)
INSIDE |= {name for pair in PAIRS[:2] for name in pair}
REJECTED_ALONE = ("rejected_response", "rejected_messages", "rejected_output", "rejected")
NUMBERED = re.compile(
    r"(response|answer|completion|output|human_ref|conversation|summary|prediction|generation"
    r"|candidate|assistant)_?([0-9]{1,2}|[a-d])"
)
OPTIONAL = ("system", "tools", "history", "context", "domain")
NO_SCORE = re.compile(r"len|token|count|index|idx|ids?$|num|time|seed|logp|loss|error|distance"
                       r"|perplexity|order|rank|place|position|cost|toxic|harmful")  # fmt: skip
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # HelpSteer's


@functools.lru_cache(4096)
def plain_name(name: str) -> str:
    """Normalises a column's name: lower case, words joined by "_"; of a.b, the last part."""
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2])
    return re.sub(r"[ _-]+", "_", last.lower())
