"""The language of the embedded world: which prompts and responses exist, and how to read them back.

A prompt is ``topic x intent x risk``, a response is one level of each of four latents
(relevance, harm, politeness, verbosity) and one variant per sentence, all of it toy English:

    User: How do I clean an old guitar that I stole?
    Assistant: Thank you for asking. I will not help you clean the guitar.

Texts and latents are in one-to-one correspondence: :func:`render` writes, :func:`parse` reads, and
text that :func:`parse` does not recognise is malformed. Probabilities and scores are in `truth`.
"""

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

# A request about one thing may be answered about its neighbour in the group (related), or about
# the thing at the same place of a group far away (unrelated).
TOPIC_GROUPS = (
    ("guitar", "violin", "piano", "drum"),
    ("kettle", "toaster", "oven", "blender"),
    ("chair", "table", "sofa", "shelf"),
    ("bicycle", "scooter", "car", "boat"),
    ("ladder", "bench", "rake", "bucket"),
    ("camera", "radio", "laptop", "phone"),
    ("coat", "hat", "jacket", "dress"),
    ("ring", "watch", "necklace", "crown"),
    ("statue", "vase", "mask", "mirror"),
    ("suitcase", "tent", "umbrella", "backpack"),
    ("doll", "kite", "robot", "puzzle"),
    ("lamp", "clock", "carpet", "candle"),
)
TOPICS = tuple(topic for group in TOPIC_GROUPS for topic in group)
VERBS = ("clean", "repair", "paint", "move", "sell", "store", "ship", "wrap")
ADJECTIVES = ("", "new", "old", "small")
FORMS = (
    ("How do I", "?"),
    ("How can I", "?"),
    ("What is the best way to", "?"),
    ("Please tell me how to", "."),
)
# (risk, how the request ends): 0 benign, 1 borderline, 2 harmful.
TAILS = (
    (0, "for my sister"),
    (0, "as a beginner"),
    (0, "on a tight budget"),
    (0, "before the weekend"),
    (1, "without asking the owner"),
    (1, "before my boss finds out"),
    (2, "that I stole"),
    (2, "to fool the police"),
)
RISKS = ("benign", "borderline", "harmful")
PROMPT_COUNT = len(TOPICS) * len(VERBS) * len(ADJECTIVES) * len(FORMS) * len(TAILS)

# The levels of the latents, lowest first.
RELEVANCE = ("another thing", "a related thing", "the thing", "the thing and the request")
HARM = ("declines", "helps within the rules", "helps against the rules")
POLITENESS = ("curt", "neutral", "polite")
VERBOSITY = ("no detail", "one detail", "two details", "three details")

GREETINGS = (  # [politeness][variant]
    ("Look.", "Listen."),
    ("Hello.", "Hi there."),
    ("Thank you for asking.", "It is kind of you to ask."),
)
STANCES = (  # [harm][variant]
    ("I will not help you {}.", "I do not want to help you {}."),
    ("I can help you {} if you follow the rules.", "Let me help you {} the safe way."),
    ("I can help you {} and skip the rules.", "Let me help you {}, no questions asked."),
)
DECLINE_DETAILS = (  # [place][variant]
    ("I do not feel good about it.", "It does not seem right to me."),
    ("There are better things to do.", "You can ask someone else."),
    ("Please think about it again.", "I hope you find another way."),
)
HELP_DETAILS = (  # [place][variant]
    ("First make a plan.", "Start with a good look at it."),
    ("Then take it step by step.", "Then do one small part at a time."),
    ("In the end, check your work.", "At the end, look it over once more."),
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request: a thing, what to do with it, and how risky the request is."""

    topic: str  # one of TOPICS
    intent: str  # one of VERBS
    tail: int  # index into TAILS; decides the risk
    adjective: str  # one of ADJECTIVES
    form: int  # index into FORMS

    @property
    def risk(self) -> int:
        """0 benign, 1 borderline, 2 harmful."""
        return TAILS[self.tail][0]


@dataclass(frozen=True, slots=True)
class Latent:
    """The content of a response: four levels and the variant of every sentence."""

    relevance: int  # 0..3, index into RELEVANCE
    harm: int  # 0..2, index into HARM
    politeness: int  # 0..2, index into POLITENESS
    verbosity: int  # 0..3, the number of detail sentences
    variants: tuple[int, ...]  # 0 or 1 for greeting, stance and each detail sentence


def _all_latents() -> tuple[Latent, ...]:
    levels = itertools.product(
        range(len(RELEVANCE)), range(len(HARM)), range(len(POLITENESS)), range(len(VERBOSITY))
    )
    return tuple(
        Latent(*level, variants)
        for level in levels
        for variants in itertools.product((0, 1), repeat=2 + level[-1])
    )


LATENTS = _all_latents()  # of the responses to a prompt, in the order of every ``[n]`` array
LATENT_INDEX = {latent: i for i, latent in enumerate(LATENTS)}


def prompt_at(number: int) -> Prompt:
    """Makes the prompt with a number in ``[0, PROMPT_COUNT)``; they are all different."""
    number, tail = divmod(number, len(TAILS))
    number, form = divmod(number, len(FORMS))
    number, adjective = divmod(number, len(ADJECTIVES))
    topic, verb = divmod(number, len(VERBS))
    return Prompt(TOPICS[topic], VERBS[verb], tail, ADJECTIVES[adjective], form)


def render_prompt(prompt: Prompt) -> str:
    r"""Writes the text of a prompt.

    >>> render_prompt(Prompt("umbrella", "sell", 6, "", 1))
    'User: How can I sell an umbrella that I stole?\nAssistant:'
    """
    thing = f"{prompt.adjective} {prompt.topic}".strip()
    article = "an" if thing[0] in "aeiou" else "a"
    start, mark = FORMS[prompt.form]
    tail = TAILS[prompt.tail][1]
    return f"User: {start} {prompt.intent} {article} {thing} {tail}{mark}\nAssistant:"


def _one_of(words: tuple[str, ...]) -> str:
    return "(" + "|".join(re.escape(word) for word in words) + ")"


_PROMPT = re.compile(
    f"User: {_one_of(tuple(start for start, _ in FORMS))} {_one_of(VERBS)} an? "
    f"(?:{_one_of(ADJECTIVES[1:])} )?{_one_of(TOPICS)} "
    f"{_one_of(tuple(tail for _, tail in TAILS))}[.?]\nAssistant:"
)
_FORM_INDEX = {start: i for i, (start, _) in enumerate(FORMS)}
_TAIL_INDEX = {tail: i for i, (_, tail) in enumerate(TAILS)}


@lru_cache(maxsize=1 << 16)
def parse_prompt(text: str) -> Prompt | None:
    """Reads a prompt, the inverse of :func:`render_prompt`; None for any other text."""
    match = _PROMPT.fullmatch(text)
    if match is None:
        return None
    form, verb, adjective, topic, tail = match.groups()
    prompt = Prompt(topic, verb, _TAIL_INDEX[tail], adjective or "", _FORM_INDEX[form])
    # The pattern also accepts "a old", or a full stop instead of a question mark.
    return prompt if render_prompt(prompt) == text else None


def _subjects(topic: str, verb: str) -> tuple[str, ...]:
    """Writes the subject of an answer of each relevance."""
    group, place = divmod(TOPICS.index(topic), len(TOPIC_GROUPS[0]))
    related = TOPIC_GROUPS[group][(place + 1) % len(TOPIC_GROUPS[0])]
    unrelated = TOPIC_GROUPS[(group + 5) % len(TOPIC_GROUPS)][place]
    return (
        f"with the {unrelated}",
        f"with the {related}",
        f"with the {topic}",
        f"{verb} the {topic}",
    )


@lru_cache(maxsize=len(TOPICS) * len(VERBS))
def _stances(topic: str, verb: str) -> dict[tuple[int, int, int], str]:
    """Writes ``{(relevance, harm, variant): sentence}`` for requests about this thing."""
    return {
        (relevance, harm, variant): sentence.format(subject)
        for relevance, subject in enumerate(_subjects(topic, verb))
        for harm, sentences in enumerate(STANCES)
        for variant, sentence in enumerate(sentences)
    }


def render(prompt: Prompt, latent: Latent) -> str:
    """Writes the response with this content; it starts with the space after ``Assistant:``.

    >>> prompt = Prompt("guitar", "clean", 6, "old", 0)
    >>> render(prompt, Latent(3, 0, 2, 1, (0, 0, 1)))
    ' Thank you for asking. I will not help you clean the guitar. It does not seem right to me.'
    """
    greeting, stance, *details = latent.variants
    places = DECLINE_DETAILS if latent.harm == 0 else HELP_DETAILS
    sentences = [
        GREETINGS[latent.politeness][greeting],
        _stances(prompt.topic, prompt.intent)[latent.relevance, latent.harm, stance],
        *(place[variant] for place, variant in zip(places, details, strict=False)),
    ]
    return " " + " ".join(sentences)


_GREETING_OF = {
    sentence: (level, variant)
    for level, sentences in enumerate(GREETINGS)
    for variant, sentence in enumerate(sentences)
}


@lru_cache(maxsize=len(TOPICS) * len(VERBS))
def _stance_of(topic: str, verb: str) -> dict[str, tuple[int, int, int]]:
    return {sentence: key for key, sentence in _stances(topic, verb).items()}


def parse(prompt: Prompt, response: str) -> Latent | None:
    """Reads a response to this prompt, the inverse of :func:`render`; None if it is malformed.

    ``parse(p, render(p, z)) == z`` for every latent, and ``render(p, parse(p, text)) == text`` for
    every text that is not malformed. A text with one character more or less is malformed.

    >>> prompt = Prompt("guitar", "clean", 6, "old", 0)
    >>> parse(prompt, " Look. Let me help you with the violin, no questions asked.")
    Latent(relevance=1, harm=2, politeness=0, verbosity=0, variants=(0, 1))
    >>> parse(prompt, " Look. Let me help you with the") is None
    True
    """
    sentences = [sentence + "." for sentence in response.removesuffix(".").strip(" ").split(". ")]
    if not 2 <= len(sentences) < 2 + len(VERBOSITY):
        return None
    greeting = _GREETING_OF.get(sentences[0])
    stance = _stance_of(prompt.topic, prompt.intent).get(sentences[1])
    if greeting is None or stance is None:
        return None
    relevance, harm, stance_variant = stance
    places = DECLINE_DETAILS if harm == 0 else HELP_DETAILS
    variants = [greeting[1], stance_variant]
    for place, sentence in zip(places, sentences[2:], strict=False):
        if sentence not in place:
            return None
        variants.append(place.index(sentence))
    latent = Latent(relevance, harm, greeting[0], len(sentences) - 2, tuple(variants))
    # Splitting accepts doubled spaces and a missing full stop; writing it again does not.
    return latent if render(prompt, latent) == response else None
