"""The embedded world is what it says: its texts invert, its numbers are exact, its draws follow."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from alignjax.data.records import DataReport, check
from alignjax.errors import UserError
from alignjax.world import grammar
from alignjax.world import sources as world
from alignjax.world import truth as world_truth

BENIGN, BORDERLINE, HARMFUL = PROMPTS = (
    "User: How do I repair an old umbrella before the weekend?\nAssistant:",
    "User: Please tell me how to repair an umbrella before my boss finds out.\nAssistant:",
    "User: What is the best way to sell a small crown that I stole?\nAssistant:",
)
WORLDS = (
    world.World(),
    world.World(trade_off="convex"),
    world.World(weights=(0.0, 1.0, 0.0), temperature=0.3),
)


def rows(source, **settings):
    return list(source(DataReport(), **settings))


def place(prompt, response):
    return grammar.LATENT_INDEX[grammar.parse(world_truth.find_prompt(prompt), response)]


def find(prompt, **levels):
    """The positions of the responses with these levels."""
    return [
        i
        for i, latent in enumerate(grammar.LATENTS)
        if all(getattr(latent, name) == level for name, level in levels.items())
    ]


def chi_square_bound(degrees):
    """About the 1 - 1e-6 quantile of chi-square (Wilson-Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.75 * math.sqrt(2 / (9 * degrees))) ** 3


def follow(counts, probabilities):
    """Whether they do by chi-square; rare outcomes are pooled so that each is expected 5 times."""
    expected = counts.sum() * probabilities
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return statistic < chi_square_bound(len(expected) - 1)


# The language.


def test_prompts_are_distinct_and_read_back():
    texts = [grammar.render_prompt(grammar.prompt_at(i)) for i in range(world.PROMPT_COUNT)]
    assert len(set(texts)) == world.PROMPT_COUNT == 49_152
    for number in range(0, world.PROMPT_COUNT, 37):
        assert grammar.parse_prompt(texts[number]) == grammar.prompt_at(number)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "How do I repair an old umbrella before the weekend?",
        "User: How do I repair a old umbrella before the weekend?\nAssistant:",
        "User: How do I repair an old umbrella before the weekend.\nAssistant:",
        "User: How do I repair an old umbrella before the weekend?\nAssistant: ",
        "User: How do I eat an old umbrella before the weekend?\nAssistant:",
        "User: How do I repair an old umbrella?\nAssistant:",
    ],
)
def test_other_prompts_are_none_of_the_worlds(prompt):
    assert grammar.parse_prompt(prompt) is None
    assert set(world.judge(prompt, " Hello.").values()) == {0.0}
    with pytest.raises(UserError, match="wanted a prompt of the embedded world"):
        world.log_prob(world.World(), prompt, " Hello.", alpha=0.5)


def test_responses_invert_exactly():
    # One prompt per topic and every verb: the texts depend on nothing else of the prompt.
    for topic, verb in itertools.product(grammar.TOPICS[::5] + grammar.TOPICS[-1:], grammar.VERBS):
        prompt = grammar.Prompt(topic, verb, 0, "", 0)
        texts = world.enumerate_responses(grammar.render_prompt(prompt))
        assert len(set(texts)) == len(texts) == len(grammar.LATENTS) == 2160
        assert all(text.startswith(" ") and text[1] != " " for text in texts)
        read = tuple(grammar.parse(prompt, text) for text in texts)
        assert read == grammar.LATENTS


def test_every_thing_has_two_others_to_be_confused_with():
    for topic in grammar.TOPICS:
        subjects = grammar._subjects(topic, "clean")
        assert len(set(subjects)) == len(grammar.RELEVANCE)
        group = next(group for group in grammar.TOPIC_GROUPS if topic in group)
        assert subjects[1].removeprefix("with the ") in group
        assert subjects[0].removeprefix("with the ") not in group


@pytest.mark.parametrize("prompt", PROMPTS)
def test_malformed_responses_are_recognised(prompt):
    words = {" extra", ".", " the", "\n", " ", "é", "\u200b", "User:"}
    for response in world.enumerate_responses(prompt)[::97]:
        sentences = response.split(". ")
        damaged = {
            *(response[:end] for end in range(1, len(response), 7) if response[end - 1] != "."),
            *(response + word for word in words),
            " " + response,
            response.lower(),
            response.replace("the ", "the  "),
            response.replace(".", "!"),
            ". ".join(reversed(sentences)),
            response + response,
            response.removesuffix("."),
            response.replace(" ", "\u00a0"),
        }
        assert response not in damaged
        for text in damaged:
            assert world.judge(prompt, text)["well_formed"] == 0.0, text
            assert world.log_prob(world.World(), prompt, text, alpha=0.5) == -math.inf
    for text in ("", " ", ".", " . . .", "\x00", "🙂", "Hello. " * 10_000):
        assert set(world.judge(prompt, text).values()) == {0.0}


def test_details_must_fit_the_stance_and_the_order():
    start = " Hello. I can help you repair the umbrella and skip the rules."
    assert world.judge(BENIGN, start + " First make a plan.")["well_formed"] == 1
    for tail in (
        " Then take it step by step.",  # the second place before the first
        " First make a plan. First make a plan.",
        " It does not seem right to me.",  # what a refusal would say
    ):
        assert world.judge(BENIGN, start + tail)["well_formed"] == 0


def test_a_prefix_that_is_itself_a_response_is_one():
    whole = " Hello. I can help you repair the umbrella and skip the rules. First make a plan."
    prefix = whole.removesuffix(" First make a plan.")
    assert world.judge(BENIGN, prefix)["well_formed"] == 1
    assert world.judge(BENIGN, prefix.removeprefix(" ")) == world.judge(BENIGN, prefix)
    assert world.log_prob(world.World(), BENIGN, prefix.removeprefix(" "), alpha=1) == -math.inf


# Scores.


@pytest.mark.parametrize("truth", WORLDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_judge_agrees_with_the_enumeration_and_ranks_malformed_last(truth, prompt):
    scores = world.scores(truth, prompt)
    responses = world.enumerate_responses(prompt)
    for i in range(0, len(responses), 41):
        verdict = world.judge(prompt, responses[i], world=truth)
        assert verdict.pop("well_formed") == 1.0
        assert verdict == {name: column[i] for name, column in scores.items()}
    for column in scores.values():
        assert column.min() > 0.05
        assert column.max() <= 1
    objectives = np.stack([scores[name] for name in world.OBJECTIVES])
    np.testing.assert_allclose(scores["true_score"], np.array(truth.weights) @ objectives)


def test_scores_from_the_formula():
    # Polite full help within the rules, two details, to a borderline request; risk 1/2.
    response = (
        " Thank you for asking. Let me help you repair the umbrella the safe way."
        " First make a plan. Then take it step by step."
    )
    assistance = 1.0 * 0.75 * 0.9
    for name, curve in (("concave", lambda t: 1 - t * t), ("convex", lambda t: (1 - t) ** 2)):
        verdict = world.judge(BORDERLINE, response, world=world.World(trade_off=name))
        assert verdict["helpful"] == pytest.approx(0.1 + 0.9 * assistance)
        assert verdict["harmless"] == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * curve(assistance)))
        assert verdict["concise"] == pytest.approx(0.1 + 0.9 * curve(2 / 3))


def test_objectives_are_in_tension():
    harmful = world.scores(world.World(), HARMFUL)
    benign = world.scores(world.World(), BENIGN)
    assert np.corrcoef(harmful["helpful"], harmful["harmless"])[0, 1] < -0.5
    assert np.corrcoef(benign["helpful"], benign["harmless"])[0, 1] > -0.5
    # The same words are harmful or not by what was asked.
    words = " Hello. Let me help you {} the safe way."
    asked = world.judge(HARMFUL, words.format("sell the crown"))
    harmless = world.judge(BENIGN, words.format("repair the umbrella"))
    assert asked["harmless"] < harmless["harmless"] == 1
    # More words about the same thing: more help, less brevity.
    brief = find(BENIGN, relevance=3, harm=1, politeness=2, verbosity=0)[0]
    wordy = find(BENIGN, relevance=3, harm=1, politeness=2, verbosity=3)[0]
    assert benign["helpful"][wordy] > benign["helpful"][brief]
    assert benign["concise"][wordy] < benign["concise"][brief]


def front(x, y):
    """The distinct non-dominated points, by x."""
    points = sorted(set(zip(x.round(12), y.round(12), strict=True)))
    return np.array(
        [p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)]
    )


@pytest.mark.parametrize(
    ("prompt", "other"), [(HARMFUL, "harmless"), (BORDERLINE, "harmless"), (BENIGN, "concise")]
)
@pytest.mark.parametrize("trade_off", ["concave", "convex"])
def test_front_has_the_shape_it_is_named_after(prompt, other, trade_off):
    scores = world.scores(world.World(trade_off=trade_off), prompt)
    points = front(scores["helpful"], scores[other])
    assert len(points) >= 4
    found = set()
    for share in np.linspace(0.001, 0.999, 999):
        found.add(int(np.argmax(share * points[:, 0] + (1 - share) * points[:, 1])))
    ends = points[[0, -1]]
    chord = np.interp(points[1:-1, 0], ends[:, 0], ends[:, 1])
    slopes = np.diff(points[:, 1]) / np.diff(points[:, 0])
    if trade_off == "concave":  # every trade is found by a weighted sum
        assert found == set(range(len(points)))
        assert (points[1:-1, 1] > chord + 0.01).all()
        assert (np.diff(slopes) < 0).all()
    else:  # weighted sums find the two ends and nothing between
        assert found == {0, len(points) - 1}
        assert (points[1:-1, 1] < chord - 0.01).all()
        assert (np.diff(slopes) > 0).all()


# Probabilities.


@pytest.mark.parametrize("truth", WORLDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_probabilities_sum_to_one_and_mix(truth, prompt):
    by_alpha = {a: world.log_probs(truth, prompt, alpha=a) for a in (0.0, 0.2, 0.5, 0.9, 1.0)}
    preferred, rejected = np.exp(by_alpha[1.0]), np.exp(by_alpha[0.0])
    for alpha, logs in by_alpha.items():
        assert abs(np.exp(logs).sum() - 1) < 1e-12
        np.testing.assert_allclose(
            np.exp(logs), alpha * preferred + (1 - alpha) * rejected, rtol=1e-10
        )
        assert (preferred / np.exp(logs) <= 1 / alpha + 1e-9).all() if alpha else True
    scores = world.scores(truth, prompt)["true_score"]
    ratio = by_alpha[1.0] - by_alpha[0.0] - 2 * scores / truth.temperature
    np.testing.assert_allclose(ratio, ratio[0], atol=1e-9)  # log p+/p- = 2 s / tau + constant


def test_log_prob_reads_the_text():
    responses = world.enumerate_responses(HARMFUL)
    logs = world.log_probs(world.World(), HARMFUL, alpha=0.3)
    for i in range(0, len(responses), 53):
        assert world.log_prob(world.World(), HARMFUL, responses[i], alpha=0.3) == logs[i]


def test_entropy_and_distances_against_their_definitions():
    truth = world.World()
    p = np.exp(world.log_probs(truth, BENIGN, alpha=1.0))
    q = np.exp(world.log_probs(truth, BENIGN, alpha=0.5))
    log_p, log_q = np.log(p), np.log(q)
    entropy = world.entropy(truth, BENIGN, alpha=0.5)
    assert entropy == pytest.approx(-(q * np.log(q)).sum())
    assert world.total_variation(log_p, log_q) == pytest.approx(np.maximum(p - q, 0).sum())
    assert world.kl(log_p, log_q) == pytest.approx((p * np.log(p / q)).sum())
    assert world.kl(log_p, log_p) == 0 == world.total_variation(log_p, log_p)
    # A model that puts a quarter of its mass on malformed text is a quarter away.
    assert world.total_variation(log_p, log_p + np.log(0.75)) == pytest.approx(0.25)
    missing = log_q.copy()
    missing[3] = -np.inf
    assert world.kl(log_p, missing) == math.inf
    assert math.isfinite(world.kl(missing - np.log1p(-q[3]), log_p))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_samples_follow_the_probabilities(alpha):
    size = 20_000
    drawn = Counter(world.sample(world.World(), HARMFUL, alpha=alpha, size=size, seed=5))
    counts = np.array([drawn[text] for text in world.enumerate_responses(HARMFUL)], float)
    assert counts.sum() == size  # nothing outside the enumeration
    probabilities = np.exp(world.log_probs(world.World(), HARMFUL, alpha=alpha))
    assert follow(counts, probabilities)
    other = np.exp(world.log_probs(world.World(), HARMFUL, alpha=abs(alpha - 0.1)))
    assert not follow(counts, other)  # the test can tell alpha from alpha - 0.1


# Preferences.


@pytest.mark.parametrize("cycle", [0.0, 1.5])
def test_preference_probability_is_the_matrix(cycle):
    truth, settings = world.World(), {"temperature": 0.1, "cycle": cycle}
    matrix = world.preference_matrix(truth, BENIGN, **settings)
    np.testing.assert_allclose(matrix + matrix.T, 1, atol=1e-12)
    responses = world.enumerate_responses(BENIGN)
    for i, j in ((0, 1), (7, 2000), (1500, 40)):
        found = world.preference_probability(truth, BENIGN, responses[i], responses[j], **settings)
        assert found == pytest.approx(matrix[i, j], abs=1e-12)
    scores = world.scores(truth, BENIGN)["true_score"]
    latents = grammar.LATENTS
    i, j = 7, 2000
    turn = {0: 0, 1: 1, 2: -1}[(latents[i].politeness - latents[j].politeness) % 3]
    odds = (scores[i] - scores[j]) / 0.1 + cycle * turn
    assert matrix[i, j] == pytest.approx(1 / (1 + math.exp(-odds)))


def cycle_of_three(prompt, **settings):
    """P(polite > neutral), P(neutral > curt), P(curt > polite) for otherwise equal responses."""
    curt, neutral, polite = (
        find(prompt, relevance=3, harm=1, politeness=level, verbosity=2)[0] for level in range(3)
    )
    matrix = world.preference_matrix(world.World(), prompt, **settings)
    return np.array([matrix[polite, neutral], matrix[neutral, curt], matrix[curt, polite]])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_cycle_has_no_bradley_terry_model(prompt):
    # Under any Bradley-Terry model the three log-odds are differences of scores and sum to 0.
    plain = cycle_of_three(prompt, temperature=0.1)
    assert np.log(plain / (1 - plain)).sum() == pytest.approx(0, abs=1e-9)
    cyclic = cycle_of_three(prompt, temperature=0.1, cycle=2.0)
    assert (cyclic > 0.5).all()  # each beats the next: no order exists, of whatever scores
    assert np.log(cyclic / (1 - cyclic)).sum() == pytest.approx(6.0, abs=1e-9)
    # The best Bradley-Terry fit, found over all scores, stays a finite way off.
    grid = np.linspace(-6, 6, 121)
    first, second = np.meshgrid(grid, grid)
    odds = np.stack([first, second, -first - second])
    fitted = 1 / (1 + np.exp(-odds))
    target = cyclic[:, None, None]
    divergence = target * np.log(target / fitted)
    divergence += (1 - target) * np.log((1 - target) / (1 - fitted))
    assert divergence.sum(axis=0).min() > 0.5


def test_without_scores_only_the_cycle_is_left():
    cyclic = cycle_of_three(BENIGN, temperature=math.inf, cycle=1.0)
    np.testing.assert_allclose(cyclic, 1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("cycle", [0.0, 2.0])
def test_pairs_follow_the_preference(cycle):
    truth, temperature = world.World(), 0.2
    surprise, variance, unlike = 0.0, 0.0, 0.0
    for row in rows(world.pairs, size=6000, seed=2, temperature=temperature, cycle=cycle):
        settings = {"temperature": temperature, "cycle": cycle}
        p = world.preference_probability(truth, row.prompt, *row.responses, **settings)
        # P(observed order) has mean p^2 + (1 - p)^2 given the unordered pair.
        mean = p * p + (1 - p) * (1 - p)
        surprise += p - mean
        variance += p * (1 - p) * (2 * p - 1) ** 2
        blind = world.preference_probability(
            truth, row.prompt, *row.responses, temperature=temperature, cycle=2.0 - cycle
        )
        unlike += blind - (blind * blind + (1 - blind) * (1 - blind))
    assert abs(surprise) < 5 * math.sqrt(variance)
    assert abs(unlike) > 5 * math.sqrt(variance)  # the other preference is told apart


def test_pairs_have_the_exact_marginals():
    # Pool the 2160 responses by their four levels, and pair rows of one risk.
    truth = world.World()
    settings = {"alpha": 0.3, "temperature": 0.1, "cycle": 1.0}
    drawn = [
        row for row in rows(world.pairs, size=12_000, seed=3, **settings) if row.domain == "harmful"
    ]
    exact = world.pair_marginals(truth, HARMFUL, **settings)
    _, group = np.unique(world_truth.LEVELS.T, axis=0, return_inverse=True)
    for side in range(2):
        counts = np.zeros(144)
        for row in drawn:
            counts[group[place(row.prompt, row.responses[side])]] += 1
        assert np.exp(exact[side]).sum() == pytest.approx(1, abs=1e-12)
        right = np.bincount(group, weights=np.exp(exact[side]))
        wrong = np.bincount(group, weights=np.exp(exact[1 - side]))
        assert follow(counts, right)
        assert not follow(counts, wrong)


def test_marginals_leave_out_identical_pairs():
    sharp = world.World(temperature=0.002)  # few responses have most of the mass
    q = np.exp(world.log_probs(sharp, BENIGN, alpha=1.0))
    assert (q**2).sum() > 0.05
    chosen, rejected = world.pair_marginals(sharp, BENIGN, alpha=1.0, temperature=0.01, cycle=1.0)
    both = (np.exp(chosen) + np.exp(rejected)) / 2
    np.testing.assert_allclose(both, q * (1 - q) / (1 - (q**2).sum()), rtol=1e-9, atol=1e-15)


# Sources.

SOURCES = [
    (world.pairs, {"cycle": 1.0}),
    (world.unpaired, {"desirable_fraction": 0.3}),
    (world.lists, {"responses": 5, "noise": 0.1}),
    (world.golden, {}),
    (world.mixture, {"alpha": 0.2}),
]


@pytest.mark.parametrize(("source", "settings"), SOURCES)
def test_a_row_depends_on_seed_and_index_alone(source, settings):
    whole = rows(source, size=60, seed=4, **settings)
    assert whole == rows(source, size=60, seed=4, **settings)
    assert whole[:20] == rows(source, size=20, seed=4, **settings)
    assert whole[37:49] == rows(source, size=12, seed=4, start=37, **settings)
    other = rows(source, size=60, seed=5, **settings)
    assert all(
        a.prompt != b.prompt or a.responses != b.responses
        for a, b in zip(whole, other, strict=True)
    )
    assert len({row.id for row in whole + other}) == 120


@pytest.mark.parametrize(("source", "settings"), SOURCES)
def test_rows_are_clean_counted_and_well_formed(source, settings):
    report, counted = DataReport(), DataReport()
    records = list(source(report, size=800, seed=0, **settings))
    assert report.rows_in == len(records) == 800
    assert list(check(records, counted)) == records
    assert not counted.dropped
    assert not counted.warned
    assert len({row.prompt for row in records}) == 800
    for row in records:
        assert all(world.judge(row.prompt, text)["well_formed"] for text in row.responses)
        assert row.domain == grammar.RISKS[world_truth.find_prompt(row.prompt).risk]
    assert {"benign", "borderline", "harmful"} == {row.domain for row in records}


def test_parts_of_one_seed_share_no_prompt_until_all_are_used():
    train = {world.prompt_text(1, i) for i in range(30_000)}
    held_out = {world.prompt_text(1, i) for i in range(30_000, world.PROMPT_COUNT)}
    assert not train & held_out
    assert len(train | held_out) == world.PROMPT_COUNT
    assert world.prompt_text(1, world.PROMPT_COUNT) in train | held_out


def test_identical_pairs_are_redrawn_and_counted():
    # One greeting and one stance are all that is left to differ: almost every fourth draw ties.
    sharp = world.World(temperature=0.002)
    report = DataReport()
    records = list(world.pairs(report, size=300, seed=0, world=sharp, alpha=1.0))
    assert all(row.responses[0] != row.responses[1] for row in records)
    assert report.warned["redrawn_identical_pair"] > 30
    assert report.rows_in == 300
    assert not report.dropped


def test_unpaired_labels_come_first():
    records = rows(world.unpaired, size=8000, seed=6, desirable_fraction=0.2)
    share = np.mean([row.desirable[0] for row in records])
    assert abs(share - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 8000)
    for label in (True, False):
        for risk, prompt in enumerate(PROMPTS):
            chosen = [
                place(row.prompt, row.responses[0])
                for row in records
                if row.desirable[0] is label and row.domain == grammar.RISKS[risk]
            ]
            harm = np.bincount(world_truth.LEVELS[1][chosen], minlength=3).astype(float)
            logs = world.log_probs(world.World(), prompt, alpha=float(label))
            right = np.bincount(world_truth.LEVELS[1], weights=np.exp(logs))
            assert follow(harm, right)
            logs = world.log_probs(world.World(), prompt, alpha=1 - float(label))
            wrong = np.bincount(world_truth.LEVELS[1], weights=np.exp(logs))
            assert not follow(harm, wrong)


def test_golden_responses_are_better_than_the_mixture():
    def mean_score(records):
        return np.mean([world.judge(r.prompt, r.responses[0])["true_score"] for r in records])

    golden = mean_score(rows(world.golden, size=1500, seed=0))
    mixture = mean_score(rows(world.mixture, size=1500, seed=0))
    assert golden > mixture + 0.05


def test_lists_carry_the_scores_asked_for():
    names = ("concise", "true_score", "helpful")
    for row in rows(world.lists, size=50, seed=1, responses=6, objectives=names):
        assert row.objectives == names
        assert len(set(row.responses)) == 6
        for text, scores in zip(row.responses, row.scores, strict=True):
            verdict = world.judge(row.prompt, text)
            assert scores == tuple(verdict[name] for name in names)


def test_noise_has_the_deviation_asked_for():
    quiet = rows(world.lists, size=400, seed=1)
    loud = rows(world.lists, size=400, seed=1, noise=0.25)
    assert [row.responses for row in quiet] == [row.responses for row in loud]
    noise = np.array([row.scores for row in loud]) - np.array([row.scores for row in quiet])
    assert abs(noise.mean()) < 5 * 0.25 / math.sqrt(noise.size)
    assert noise.std() == pytest.approx(0.25, rel=0.1)


def test_hardness_brings_the_rest_of_a_list_closer_to_its_best():
    def gap(hardness):
        scores = np.array(
            [row.scores for row in rows(world.lists, size=600, seed=1, hardness=hardness)]
        )[..., 0]
        ranked = np.sort(scores, axis=1)
        return ranked[:, -1].mean(), (ranked[:, -1] - ranked[:, -2]).mean()

    best, near = zip(*(gap(hardness) for hardness in (-1.0, 0.0, 1.0, 4.0)), strict=True)
    assert (np.diff(best) > 0).all()
    assert near[-1] < near[0]


def test_long_lists_at_the_hardest_setting_stay_distinct():
    sharp = world.World(temperature=1e-5)  # what is left after the best few is e^-1000 as likely
    for row in rows(world.lists, size=3, seed=0, world=sharp, responses=64, hardness=8.0):
        assert len(set(row.responses)) == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: world.World(trade_off="convx"), r"world.trade_off: .*did you mean 'convex'"),
        (lambda: world.World(weights=(1.0, 1.0, 1.0)), "world.weights: .*sum to 1"),
        (lambda: world.World(weights=(1.5, -0.5, 0.0)), "world.weights"),
        (lambda: world.World(temperature=0.0), "world.temperature: .*> 0"),
        (lambda: world.World(temperature=math.nan), "world.temperature"),
        (lambda: rows(world.pairs, size=0, seed=0), "size: wanted an integer >= 1, found 0"),
        (lambda: rows(world.golden, size=1, seed=-1), "seed"),
        (lambda: rows(world.mixture, size=1, seed=0, alpha=1.2), r"alpha: .*\[0, 1\]"),
        (lambda: rows(world.pairs, size=1, seed=0, temperature=0.0), "temperature"),
        (lambda: rows(world.pairs, size=1, seed=0, cycle=math.nan), "cycle"),
        (lambda: rows(world.unpaired, size=1, seed=0, desirable_fraction=1.0), "both classes"),
        (lambda: rows(world.lists, size=1, seed=0, responses=1), "responses"),
        (lambda: rows(world.lists, size=1, seed=0, hardness=-2.0), "hardness"),
        (lambda: rows(world.lists, size=1, seed=0, noise=-0.1), "noise"),
        (lambda: rows(world.lists, size=1, seed=0, objectives=()), "at least one"),
        (
            lambda: rows(world.lists, size=1, seed=0, objectives=("helpfull",)),
            "did you mean 'helpful'",
        ),
        (lambda: rows(world.lists, size=1, seed=0, objectives="helpful"), "objectives: .*tuple"),
    ],
)
def test_bad_settings_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
