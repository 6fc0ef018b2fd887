"""Scores responses with a trained reward model, a judge, or a custom function.

A config names a function of records and binds its keywords with `functools.partial`:

    scorer=partial(scorers.reward_model, path="runs/rm")
    scorer=partial(scorers.judged, judge=world.judge, name="true_score")
    scorer=partial(scorers.checked, check=my_check)
    scorer=partial(scorers.several, scorers=(one, another))
    scorer=my_function

`open_scorer` makes a `Scorer` of any of them, which checks the scores that the function returns.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignjax.config import Config, MeshConfig
from alignjax.config.fields import name_of, plain
from alignjax.data.records import LARGEST_SCORE, DataError, Record
from alignjax.errors import UserError, did_you_mean
from alignjax.rewards import reward_models
from alignjax.rewards.reward_models import RewardModel
from alignjax.runtime.distributed import broadcast

Score = Callable[[Sequence[Record]], list[np.ndarray]]  # for each record [k] or [k, M]
# Numbers of texts and of cut ones: "NAME: responses", "NAME: responses cut"; the same of prompts.
Cuts = Counter[str]
Judge = Callable[[str, str], dict[str, float]]  # (prompt, response) -> {name: score}


def judged(
    records: Sequence[Record], *, judge: Judge, name: str | tuple[str, ...]
) -> list[np.ndarray]:
    """Scores responses by a function of the texts, such as the embedded world's truth.

    Args:
      records: their prompts are plain text.
      judge: ``(prompt, response) -> {name: score}``.
      name: which of its scores, larger is better; a tuple of M names for M objectives.

    Returns:
      For each record ``[k]`` float32, or ``[k, M]`` where ``name`` is a tuple.

    Raises:
      DataError: a prompt is a conversation, or the judge has no such score.
    """
    names = (name,) if isinstance(name, str) else name
    out = []
    for record in records:
        if not isinstance(record.prompt, str):
            raise DataError(
                f"{record.origin or record.id}: wanted a prompt of plain text for the judge, found "
                "a conversation; a scorer function, records -> [k] or [k, M] each, can read both"
            )
        rows = [judge(record.prompt, response) for response in record.responses]
        for row in rows:
            for wanted in names:
                if wanted not in row:
                    raise DataError(
                        f"name: the judge gives no score {wanted!r}{did_you_mean(wanted, row)}; "
                        f"it gives {', '.join(row)}"
                    )
        scores = np.array([[row[n] for n in names] for row in rows], np.float32)
        scores = scores.reshape(len(rows), len(names))
        out.append(scores[:, 0] if isinstance(name, str) else scores)
    return out


def checked(records: Sequence[Record], *, check: Callable[[str, str], float]) -> list[np.ndarray]:
    """Scores a policy's samples by comparing them with the data's answer.

    Args:
      records: of their ``answers`` the first one is used, in pairs the chosen response.
      check: ``(response, answer) -> score``, larger is better; such as
        ``lambda response, answer: float(response.strip() == answer.strip())``.

    Returns:
      For each record ``[k]`` float32.

    Raises:
      DataError: a record has no answer.
    """
    out = []
    for record in records:
        if not record.answers:
            raise DataError(f"{record.origin or record.id}: has no answer to compare with")
        answer = record.answers[0]
        out.append(np.array([check(x, answer) for x in record.responses], np.float32))
    return out


def reward_model(
    records: Sequence[Record],
    *,
    path: str,
    batch_size: int = 32,
    mesh: MeshConfig | None = None,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
    cuts: Cuts | None = None,
) -> list[np.ndarray]:
    """Scores responses by a trained reward model, with a progress bar; compiles per padded shape.

    Texts over the token limits are cut as in training: prompts lose their beginning, responses
    their end. The number of cut texts is logged, and in a run added to its data report. A model
    that transformers saved reads the text that its chat template writes and scores at the last
    token that is not padding, as in transformers. With two labels, the score is the logit of the
    second minus that of the first.

    Args:
      records: prompts as the model was trained on, with any number of responses.
      path: the workdir of a finished run whose config has a ``reward_loss``, or a folder of a
        ``...ForSequenceClassification`` saved by transformers.
      batch_size: prompts at a time, rounded up to a multiple of the mesh's ``data * fsdp``.
      mesh: the devices that parameters and rows are split over. In a run it is the run's; None:
        one device, or with several processes all devices along ``fsdp``.
      max_prompt_tokens, max_response_tokens: limits in the model's own tokens, above 1. None: those
        of the run that trained it, which an exported folder has too; for other models their
        maximum length, for prompt and response together.
      cuts: the numbers of texts and of cut texts are added to it.

    Returns:
      For each record ``[k]`` float32, or ``[k, M]`` where the model has M > 1 objectives.

    Raises:
      UserError: the folder holds no finished reward model, or another tokenizer than it was
        trained with; or batch_size is below 1, or a limit below 2.
      CheckpointError: the parameters cannot be read, or do not fit the config.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: wanted a positive number, found {batch_size}")
    found = reward_models.find(path)
    reward = reward_models.with_limits(found, max_prompt_tokens, max_response_tokens)
    return reward_models.score(reward, records, batch_size=batch_size, mesh=mesh, cuts=cuts)


def several(
    records: Sequence[Record],
    *,
    scorers: tuple[Callable[..., list[np.ndarray]], ...],
    cuts: Cuts | None = None,
) -> list[np.ndarray]:
    """Scores responses on M objectives by M scorers, in their order.

    The scorers run one after the other, so that memory holds only one reward model at a time.

    Returns:
      For each record ``[k, M]`` float32.

    Raises:
      UserError: there are no scorers, or one gives several scores per response.
    """
    if not scorers:
        raise UserError("scorers: wanted at least one, found none")
    columns = []
    for i, scorer in enumerate(scorers):
        column = [np.asarray(x, np.float32) for x in _score(scorer, records, cuts)]
        for record, scores in zip(records, column, strict=True):
            k = len(record.responses)
            if scores.shape not in ((k,), (k, 1)):
                raise UserError(
                    f"scorers[{i}]: wanted one score per response, [{k}], found shape "
                    f"{list(scores.shape)}"
                )
        columns.append([scores.reshape(-1) for scores in column])
    return [np.stack(scores, axis=1) for scores in zip(*columns, strict=True)]


def _score(function: Callable[..., Any], records: Sequence[Record], cuts: Cuts | None) -> Any:
    """Calls a scorer; passes ``cuts`` to those that run reward models."""
    counts = cuts is not None and plain(function) in (reward_model, several)
    return function(records, cuts=cuts) if counts else function(records)


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """A scorer of a config; its methods check the scores."""

    label: str  # the config field and the function, for messages
    function: Score
    names: tuple[str, ...] | None = None  # of its M scores; (): one without a name; None: unknown
    reward_models: tuple[RewardModel, ...] = ()  # that it runs, in order
    only_reward_models: bool = False  # whether it runs nothing else

    @property
    def digest(self) -> str:
        """Joins the digests of its reward models, since a config has only their paths.

        Of those that transformers saved, the token limits are added.
        """
        parts: list[str] = []
        for reward in self.reward_models:
            parts.append(reward.digest)
            if reward.from_elsewhere:
                parts += (str(reward.data[f"max_{x}_tokens"]) for x in ("prompt", "response"))
        return ":".join(parts)

    def means(self, records: Sequence[Record], cuts: Cuts | None = None) -> list[np.ndarray]:
        """Scores responses, each by the mean of its M scores.

        Returns:
          For each record of k responses ``[k]`` float64.

        Raises:
          UserError: the scorer fails, an array has another shape, or a score is not finite.
        """
        out = []
        for record, scores in self._call(records, cuts):
            k = len(record.responses)
            if scores.ndim not in (1, 2) or len(scores) != k or not scores.size:
                raise self._misshapen(record, scores, f"[{k}] or [{k}, M]")
            if not (np.abs(scores) <= LARGEST_SCORE).all():  # NaN is none of these
                raise self._not_finite(record, scores)
            out.append(scores if scores.ndim == 1 else scores.mean(axis=1))
        return _of_the_first_process(out)

    def tables(
        self, records: Sequence[Record], names: Sequence[str], cuts: Cuts | None = None
    ) -> list[np.ndarray]:
        """Scores responses on M objectives.

        Args:
          records: of k responses each.
          names: of the M objectives. They select the scores of a scorer that names its scores; any
            other has to give M scores in this order.

        Returns:
          For each record ``[k, M]`` float64, NaN where the scorer has no score.

        Raises:
          UserError: the scorer fails, lacks a name, or returns another shape or an infinite score.
        """
        columns = self.columns(names)
        out = []
        for record, scores in self._call(records, cuts):
            if self.names is not None and scores.ndim == 2:
                scores = scores[:, columns]
            wanted = (len(record.responses), len(names))
            if scores.shape != wanted:
                raise self._misshapen(record, scores, f"{list(wanted)}, for {', '.join(names)}")
            if (np.abs(scores) > LARGEST_SCORE).any():
                raise self._not_finite(record, scores)
            out.append(scores)
        return _of_the_first_process(out)

    def _call(
        self, records: Sequence[Record], cuts: Cuts | None
    ) -> list[tuple[Record, np.ndarray]]:
        scores = _named(self.label, _score, self.function, records, cuts)
        if len(scores) != len(records):
            raise UserError(
                f"{self.label}: wanted scores of {len(records)} records, found {len(scores)}"
            )
        return [(r, np.asarray(x, np.float64)) for r, x in zip(records, scores, strict=True)]

    def columns(self, names: Sequence[str]) -> list[int]:
        """Finds the places of M objectives among its scores; see `tables`."""
        if self.names is None:
            return list(range(len(names)))
        if not self.names:
            raise UserError(
                f"{self.label}: wanted scores of {', '.join(names)}, found a reward model with one "
                "objective"
            )
        for name in names:
            if name not in self.names:
                raise UserError(
                    f"{self.label}: wanted scores of {', '.join(names)}, found no "
                    f"{name!r}{did_you_mean(name, self.names)}; it has {', '.join(self.names)}"
                )
        return [self.names.index(name) for name in names]

    def _misshapen(self, record: Record, scores: np.ndarray, wanted: str) -> UserError:
        return UserError(
            f"{self.label}: record {record.id!r} has {len(record.responses)} responses: wanted "
            f"scores {wanted}, found shape {list(scores.shape)}"
        )

    def _not_finite(self, record: Record, scores: np.ndarray) -> UserError:
        return UserError(
            f"{self.label}: record {record.id!r}: wanted finite scores, at most {LARGEST_SCORE:g} "
            f"in size, found {scores.tolist()}"
        )


def open_scorer(function: Callable[..., Any], field: str, config: Config | None) -> Scorer:
    """Makes a `Scorer` of a config's function; reads of a reward model only the description.

    Args:
      function: ``records -> [k] or [k, M] for each``.
      field: the config field that names it, for messages.
      config: of the run; a reward model uses its mesh, unless ``function`` binds another. None:
        outside of a run.

    Raises:
      UserError: the folder of a reward model holds none.
    """
    label = f"{field}: {name_of(function)}"
    bound = function.keywords if isinstance(function, functools.partial) else {}
    if plain(function) is reward_model:
        reward = _named(label, reward_models.find, bound["path"])
        settings = ({} if config is None else {"mesh": config.mesh}) | bound
        limits = [settings.get(f"max_{what}_tokens") for what in ("prompt", "response")]
        reward = _named(label, reward_models.with_limits, reward, *limits)
        in_run = functools.partial(reward_model, **settings)
        return Scorer(label, in_run, reward.objectives, (reward,), True)
    if plain(function) is several:
        parts = open_scorers(bound["scorers"], f"{label}.scorers", config)
        return Scorer(
            label,
            functools.partial(several, scorers=tuple(part.function for part in parts)),
            reward_models=tuple(model for part in parts for model in part.reward_models),
            only_reward_models=all(part.only_reward_models for part in parts),
        )
    if plain(function) is judged:
        name = bound["name"]
        return Scorer(label, function, (name,) if isinstance(name, str) else name)
    return Scorer(label, function)


def open_scorers(
    functions: Sequence[Callable[..., Any]], field: str, config: Config | None
) -> list[Scorer]:
    """`open_scorer` for each item of a config field."""
    return [open_scorer(f, f"{field}[{i}]", config) for i, f in enumerate(functions)]


def digests(scorers: Sequence[Scorer]) -> list[str]:
    """Lists the digests of the scorers that run reward models."""
    return [scorer.digest for scorer in scorers if scorer.digest]


def mean_scores(
    scorers: Sequence[Scorer], records: Sequence[Record], cuts: Cuts | None = None
) -> list[np.ndarray]:
    """Scores responses by the mean of several scorers, ``[k]`` for each record."""
    by_scorer = [scorer.means(records, cuts) for scorer in scorers]
    return [np.mean(rows, axis=0) for rows in zip(*by_scorer, strict=True)]


def judgements(judge: Judge, pairs: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Scores S responses with ``evaluate.judge``.

    Args:
      judge: ``(prompt, response) -> {name: score}``.
      pairs: (prompt, response).

    Returns:
      Name -> ``[S]`` float64.

    Raises:
      UserError: the judge returns something other than ``{name: finite number}``, or not the same
        names for all responses.
    """
    label = f"evaluate.judge: {name_of(judge)}"
    rows: list[dict[str, Any]] = []
    for prompt, response in pairs:
        row = _named(label, judge, prompt, response)
        names = rows[0] if rows else row
        if not isinstance(row, dict) or not row or set(row) != set(names):
            wanted = f"the scores {', '.join(names)}" if rows else "{name: number}, at least one"
            raise UserError(f"{label}: wanted {wanted}, found {row!r}")
        bad = {n: x for n, x in row.items() if not _is_finite(x)}
        if bad:
            raise UserError(f"{label}: wanted finite numbers, found {bad} for {response!r}")
        rows.append(row)
    rows = broadcast("judgements", lambda: [{n: float(x) for n, x in row.items()} for row in rows])
    return {n: np.array([row[n] for row in rows], np.float64) for n in (rows[0] if rows else ())}


def _is_finite(x: Any) -> bool:
    array = np.asarray(x)
    return array.ndim == 0 and array.dtype.kind in "biuf" and bool(np.isfinite(array))


def _named(label: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function; its errors get the config field's name in front."""
    try:
        return function(*args)
    except UserError as error:
        raise type(error)(f"{label}: {error}") from error
    except Exception as error:  # a user's own function may raise anything
        raise UserError(f"{label}: {type(error).__name__}: {error}") from error


def _of_the_first_process(scores: list[np.ndarray]) -> list[np.ndarray]:
    """Gives all processes the scores of process 0.

    Every process runs the scorer, because a reward model runs on all devices. But a user's function
    may answer differently each time, and all processes must continue with the same numbers.
    """
    return [np.array(x) for x in broadcast("scores", lambda: [x.tolist() for x in scores])]
