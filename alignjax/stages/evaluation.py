"""Evaluates a run: held-out rewards, sampled responses, their scores, BLEU and KL; the report.

`history_line` runs every ``train.eval_every`` steps; the rest runs at the end.
"""

import dataclasses
import logging
import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignjax.config.fields import identity
from alignjax.data.batching import Bucketed
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.evaluation import plots, preferences, statistics, tables, text
from alignjax.evaluation.statistics import Interval
from alignjax.evaluation.win_rate import compare
from alignjax.rewards.scorers import Cuts, judgements, open_scorers
from alignjax.runtime import loggers, storage, workdirs
from alignjax.sampling.generate import Question, Sample, respond, take_questions, undistorted
from alignjax.stages import held_out
from alignjax.stages.data import Prepared
from alignjax.stages.run import Run
from alignjax.stages.samples import draw_samples, reuse_samples
from alignjax.training import progress
from alignjax.training.implicit import implicit_reward
from alignjax.types import Logps, Params

log = logging.getLogger("alignjax")

KL = "KL to reference, nats"
TEXTS = 8  # prompts whose responses a logger shows


def held_out_metrics(
    run: Run, policy: np.ndarray, reference: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Computes rewards, margins and label metrics of held-out rows; see `preferences`.

    Args:
      policy: ``[N, K]`` nats.
      reference: ``[N, K]`` nats; None: the run has no reference, and there are no margins.
    """
    rows = run.data.held_out
    length = rows.dataset.response_length
    order = held_out.order(rows)
    logps = Logps(
        policy=jnp.asarray(policy),
        reference=None if reference is None else jnp.asarray(reference),
        length=jnp.asarray(length),
    )
    reward = np.asarray(implicit_reward(run.config.trained_loss)(logps))
    metrics = preferences.reward_metrics(reward, length, order)
    if reference is not None:
        metrics |= preferences.margins(policy, reference, length, order)
    labels = held_out.labels(rows)
    if labels is not None:
        metrics |= preferences.label_metrics(policy, reference, labels, length)
    return metrics


EVALUATIONS, SHARE = 10, 0.1  # default: the most evaluations, and their share of the time


def paced(run: Run, trained_rows: int, steps: int) -> Run:
    """Chooses how often to evaluate, if ``train.eval_every`` is not set.

    Args:
      trained_rows: rows over all steps.
      steps: steps of the run.

    Returns:
      The run with ``train.eval_every``; evaluations chosen here draw no samples.
    """
    train, settings = run.config.train, run.config.evaluate
    if train.eval_every is not None and settings.held_out:
        return run
    # A training step costs about three times as much as scoring its rows.
    affordable = int(SHARE * 3 * trained_rows / len(run.data.held_out.dataset))
    count = min(EVALUATIONS, affordable, steps) * settings.held_out
    count = max(count, 1) if train.keep_best else count
    every = -(-steps // count) if count else 0
    config = dataclasses.replace(
        run.config,
        train=dataclasses.replace(train, eval_every=every),
        evaluate=dataclasses.replace(settings, during=0),
    )
    return dataclasses.replace(run, config=config)


def require_metric(run: Run, policy: np.ndarray | None, reference: np.ndarray | None) -> None:
    """Checks that ``train.keep_best`` names a metric of the held-out rows.

    Args:
      policy, reference: ``[N, K]`` nats before training; None: not evaluated, no reference.

    Raises:
      UserError: it does not; lists the metrics.
    """
    name = progress.best_name(run.config.train)
    if not name or policy is None:
        return
    names = list(held_out_metrics(run, policy, reference))
    if held_out.losses(run, policy, reference, steps=1) is not None:
        names.append("loss")
    if name not in names:
        listed = ", ".join(f"eval/{x}" for x in names)
        raise UserError(
            f"train.keep_best: wanted one of {listed}, found {run.config.train.keep_best!r}"
        )


def history_line(
    run: Run,
    params: Params,
    ref_params: Params | None,
    reference: np.ndarray | None,
    *,
    steps: int = 0,
    policy: np.ndarray | None = None,
) -> dict[str, float]:
    """Computes a line of the run's history: means over held-out rows and over samples.

    Samples of the first ``evaluate.during`` prompts, at temperature 1, give ``kl`` with the
    half-width of its 95% interval, the share that was cut, and the judge's scores. All evaluations
    use the same random numbers.

    Args:
      policy, reference: ``[N, K]`` nats of the held-out responses; ``policy`` None: computed here.
      steps: of the run, to add the held-out loss; 0: without it, for games.
    """
    judge = run.config.evaluate.judge
    if policy is None:
        policy = held_out.logps(run, params, "  held-out rows")
    metrics = statistics.means(held_out_metrics(run, policy, reference))
    losses = held_out.losses(run, policy, reference, steps=steps) if steps else None
    if losses is not None:
        metrics["loss"] = float(losses.mean())
    samples = _undistorted_samples(run, params, ref_params, "  sampling")
    if samples:
        metrics["unfinished"] = preferences.unfinished(samples).mean
    if samples and ref_params is not None:
        kl = preferences.kl_to_reference(samples)
        metrics |= {"kl": kl.mean, "kl_half_width": kl.half_width}
    if samples and judge is not None:
        pairs = [(s.prompt, s.response) for s in samples]
        metrics |= statistics.means(judgements(judge, pairs))
    return metrics


def _undistorted_samples(
    run: Run, params: Params, ref_params: Params | None, title: str
) -> list[Sample]:
    settings = run.config.evaluate
    if not settings.during:
        return []
    questions = take_questions(run.data.originals, settings.during)
    return respond(run.sampling(undistorted(settings), title), params, questions, ref_params)


def held_out_samples(
    name: str, run: Run, digest: str, load: Callable[[], tuple[Params, Params | None]]
) -> list[Sample]:
    """Samples responses to held-out prompts, or loads them if they were sampled before.

    Args:
      name: of the file in the run's folder, without its ending.
      digest: of the policy's parameters.
      load: loads the policy, and the reference to score the samples, or None.
    """
    config, data = run.config, run.data
    settings = dataclasses.replace(config.evaluate, judge=None, scorers=(), best_of=0, during=0)
    key = {"params": digest, "data": data.originals.dataset.digest, "evaluate": identity(settings)}
    if not config.evaluate.prompts:
        return []

    def draw(scratch: pathlib.Path) -> list[Sample]:
        params, ref_params = load()
        samples, _ = draw_samples(
            scratch,
            name.rpartition("/")[2],
            run.sampling(config.evaluate, f"sampling, {name}"),
            params,
            take_questions(data.originals, config.evaluate.prompts),
            ref_params,
        )
        return [sample for of_prompt in samples for sample in of_prompt]

    return reuse_samples(run.workdir / f"{name}.json", key, draw)


def policy_kl(
    run: Run, params: Params, ref_params: Params, samples: list[Sample]
) -> Interval | None:
    """Estimates the policy's KL from ``samples``, or from new ones if these are distorted.

    Top-p, temperature and the like distort samples. None if ``evaluate.prompts`` is 0.
    """
    settings = run.config.evaluate
    if not settings.prompts:
        return None
    if not samples or settings != undistorted(settings):
        samples = _undistorted_samples(run, params, ref_params, "sampling, for KL")
    return preferences.kl_to_reference(samples) if samples else None


def records_of(
    data: Prepared, questions: Sequence[Question], samples: list[Sample]
) -> list[Record]:
    """Makes one record per prompt with its responses, for scorers and files."""
    count = len(samples) // max(len(questions), 1)
    out = []
    for i, question in enumerate(questions):
        original = data.original_records[data.originals.dataset[question.number].id]
        responses = tuple(s.response for s in samples[i * count : (i + 1) * count])
        out.append(
            Record(
                id=original.id,
                prompt=original.prompt,
                responses=responses,
                domain=original.domain,
                answers=original.responses,
            )
        )
    return out


def preferred_responses(rows: Bucketed) -> dict[str, str]:
    """Returns the preferred response of each prompt, from the prompt's first row with one."""
    order = held_out.order(rows)
    out: dict[str, str] = {}
    for i in range(len(rows.dataset)):
        example = rows.dataset[i]
        if order is not None:
            best = -1 if np.isnan(order[i]).all() else int(np.nanargmax(order[i]))
        elif example.desirable is not None:
            best = int(example.desirable.argmax()) if example.desirable.any() else -1
        else:
            best = 0 if example.responses else -1
        if best >= 0:
            out.setdefault(example.prompt, example.responses[best])
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """The samples of one policy, with their scores."""

    samples: list[Sample]
    scores: dict[str, np.ndarray]  # by name [prompts, samples]
    deciding: np.ndarray | None  # [prompts, samples], selects the best of N; None: no scores


def compare_samples(run: Run, before: list[Sample], after: list[Sample]) -> tables.Table:
    """Evaluates the samples of two policies, and the second's win rate by each score."""
    scored = [
        score_samples(run, samples, f"samples {when}")
        for when, samples in (("before", before), ("after", after))
    ]
    old, new = (sample_metrics(run, x) for x in scored)
    table: tables.Table = {name: (old[name], new[name]) for name in new}
    for name, ours in scored[1].scores.items():
        rate = compare(list(ours), list(scored[0].scores[name]))
        table[f"win rate/{name}"] = (None, rate.win_rate)
    return table


def sample_metrics(run: Run, scored: Scored) -> dict[str, Interval]:
    """Evaluates the samples of one policy.

    The best of N is the one of a prompt's first ``evaluate.best_of`` samples with the highest mean
    score of ``evaluate.scorers``, or without scorers the highest first score of the judge; without
    either it is the first sample. BLEU compares it with the preferred response.
    """
    settings, n = run.config.evaluate, run.config.evaluate.samples
    questions = take_questions(run.data.originals, settings.prompts)
    prompts = [q.prompt for q in questions]
    samples, scores, deciding = scored.samples, scored.scores, scored.deciding
    metrics = {
        name: statistics.mean_over_prompts(x.reshape(-1), np.repeat(prompts, n).tolist())
        for name, x in scores.items()
    }
    best = np.zeros(len(questions), np.int64)
    if deciding is not None:
        best = preferences.best_of(deciding, settings.best_of)
    for name, x in scores.items():
        of_best = x[np.arange(len(best)), best]
        metrics[f"best/{name}"] = statistics.mean_over_prompts(of_best, prompts)
    responses = [samples[i * n + int(best[i])].response for i in range(len(prompts))]
    metrics |= _bleu(preferred_responses(run.data.originals), prompts, responses)
    metrics["response tokens"] = preferences.tokens(samples)
    metrics["unfinished"] = preferences.unfinished(samples)
    return metrics


def score_samples(run: Run, samples: list[Sample], where: str) -> Scored:
    """Scores the samples of one policy with the judge and the scorers of ``evaluate``.

    Args:
      samples: of all prompts.
      where: the name of the samples in the data report.
    """
    settings, n = run.config.evaluate, run.config.evaluate.samples
    questions = take_questions(run.data.originals, settings.prompts)
    scores: dict[str, np.ndarray] = {}
    if settings.judge is not None:
        judged = judgements(settings.judge, [(s.prompt, s.response) for s in samples])
        scores = {name: x.reshape(-1, n) for name, x in judged.items()}
    if not settings.scorers:
        return Scored(samples, scores, next(iter(scores.values()), None))
    records = records_of(run.data, questions, samples)
    scorers = open_scorers(settings.scorers, "evaluate.scorers", run.config)
    cuts: Cuts = Counter()
    by_scorer = [np.stack(scorer.means(records, cuts)) for scorer in scorers]
    run.note_cuts(where, cuts)
    one = len(by_scorer) == 1
    names = ["reward"] if one else [f"reward_{i}" for i in range(len(by_scorer))]
    scores |= dict(zip(names, by_scorer, strict=True))
    return Scored(samples, scores, np.mean(by_scorer, axis=0))


def _bleu(
    preferred: dict[str, str], prompts: Sequence[str], responses: Sequence[str]
) -> dict[str, Interval]:
    """Computes BLEU against the preferred responses, over the prompts that have one."""
    pairs = [
        (response.strip(), preferred[prompt].strip())
        for prompt, response in zip(prompts, responses, strict=True)
        if prompt in preferred
    ]
    if not pairs:
        return {}
    ours, theirs = zip(*pairs, strict=True)
    by_character = text.bleu_char(ours, theirs)
    return {
        "bleu": text.bleu(ours, theirs),
        "bleu_char": statistics.mean_over_prompts(by_character, range(len(pairs))),
    }


def write_report(
    run: Run,
    table: tables.Table,
    before: list[Sample],
    after: list[Sample],
    rest: dict[str, Any],
) -> dict[str, Any]:
    """Writes summary.json and report.png; prints the table, some samples and the paths.

    Args:
      table: every metric, before and after.
      before, after: samples.
      rest: other fields of the summary.
    """
    workdir, judge = run.workdir, run.config.evaluate.judge
    table = {name: pair for name, pair in table.items() if pair[1] is not None and pair[1].count}
    first, scores = "", None
    if before and judge is not None:
        first = next(iter(judge(before[0].prompt, before[0].response)))
        scores = [[judge(s.prompt, s.response)[first] for s in x] for x in (before, after)]
    summary = {
        "table": {
            name: {
                side: None if x is None else x.as_dict()
                for side, x in zip(("before", "after"), pair, strict=True)
            }
            for name, pair in table.items()
        },
        "best_of": run.config.evaluate.best_of or run.config.evaluate.samples,
        **rest,
        "data_report": storage.read_json(workdir / "data_report.json"),
        "versions": workdirs.versions(),
    }
    storage.keep_json(workdir / "summary.json", summary)
    picture = workdir / "report.png"
    plots.plot_training(workdir, picture, scores, first)
    tables.print_samples(before, after, judge, count=3)
    firsts: dict[str, tuple[str, str]] = {}
    for old, new in zip(before, after, strict=True):
        firsts.setdefault(old.prompt, (old.response, new.response))
    shown = dict(list(firsts.items())[:TEXTS])
    loggers.show_samples(run.config.train.loggers, workdir, rest["steps"], shown)
    _print_result(table, f"{workdir}: {rest['steps']} steps")
    tables.say(f"plot: {picture}\nnumbers: {workdir / 'summary.json'}")
    return summary


def _print_result(table: tables.Table, title: str) -> None:
    if table:
        tables.print_table(table, title)
    else:
        tables.say(f"{title}; nothing was measured (evaluate.held_out=False, evaluate.prompts=0)")
