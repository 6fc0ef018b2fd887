"""Samples responses to prompts as text, in batches of prompts of similar length."""

import dataclasses
import logging
import time
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from alignjax.config import SamplingConfig
from alignjax.data.batching import Bucketed, choose_shapes, deal_batches
from alignjax.data.encode import cut_prompt
from alignjax.data.records import Prompt
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.models.config import ModelConfig
from alignjax.models.logps import exact_kl
from alignjax.models.mixture import Mixture
from alignjax.runtime import distributed
from alignjax.runtime.loggers.bars import progress
from alignjax.runtime.sharding import fitting, own_rows, put_rows
from alignjax.sampling.beam import beam_search
from alignjax.sampling.decode import sample
from alignjax.types import Array, Batch, Params

log = logging.getLogger("alignjax")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sampled response."""

    prompt: str
    response: str
    length: int  # tokens, end-of-sequence included
    ended: bool  # with an end-of-sequence token; False: cut at the token limit
    logps: float  # nats under the policy (or mixture) itself, for any settings
    reference: float  # nats under the reference; NaN without one
    kl: float  # of the policy to the reference, nats summed over tokens; see `logps.exact_kl`

    def __post_init__(self) -> None:
        for name in ("reference", "kl"):  # in a JSON file NaN is null
            if getattr(self, name) is None:
                object.__setattr__(self, name, float("nan"))


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A prompt to respond to."""

    number: int  # seeds its randomness; a row of the dataset
    prompt: str
    ids: np.ndarray  # [P] int32


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """How to sample from networks of one shape; `stages.run.Run.sampling` makes it."""

    model: ModelConfig
    tokenizer: Tokenizer
    settings: SamplingConfig  # how many responses to each prompt, and how to draw them
    key: Array  # a prompt's draws depend on it and on the prompt's number
    mesh: Mesh
    title: str  # of the progress bar


def take_questions(data: Bucketed, limit: int) -> list[Question]:
    """Takes the first distinct prompts of a dataset, at most ``limit``, numbered by their row."""
    out = []
    for row in first_of_each_prompt(data, limit):
        example = data.dataset[row]
        out.append(Question(row, example.prompt, example.prompt_ids))
    return out


def ask(
    prompts: Sequence[Prompt], numbers: Sequence[int], tokenizer: Tokenizer, longest: int
) -> list[Question]:
    """Tokenises prompts; those over ``longest`` tokens lose their beginning, which is logged.

    Args:
      prompts: texts or conversations.
      numbers: see `Question`.
    """
    out, cut = [], 0
    for number, prompt in zip(numbers, prompts, strict=True):
        ids = tokenizer.encode(prompt, ()).prompt_ids
        cut += len(ids) > longest
        out.append(Question(number, tokenizer.render(prompt), cut_prompt(ids, tokenizer, longest)))
    if cut:
        log.warning("%d prompts are longer than %d tokens: they lose their beginning", cut, longest)
    return out


def undistorted(settings: SamplingConfig) -> SamplingConfig:
    """Returns settings that sample the policy itself: temperature 1, no id cut or penalised."""
    return dataclasses.replace(
        settings,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        num_beams=1,
    )


def respond(
    sampling: Sampling,
    params: Params | Mixture,
    questions: Sequence[Question],
    ref_params: Params | None = None,
) -> list[Sample]:
    """Samples responses to prompts.

    Args:
      sampling: how to sample.
      params: the policy, or several policies and their weights (`alignjax.models.mixture.mix`).
      questions: the prompts.
      ref_params: the reference, for `Sample.reference` and `Sample.kl`.

    Returns:
      ``settings.samples`` responses per prompt, in the order of ``questions``.
    """
    out: dict[int, list[Sample]] = {}
    for _, samples in respond_in_batches(sampling, params, questions, ref_params):
        out |= samples
    return [s for i in sorted(out) for s in out[i]]


def respond_in_batches(
    sampling: Sampling,
    params: Params | Mixture,
    questions: Sequence[Question],
    ref_params: Params | None = None,
    *,
    done: Container[int] = (),
) -> Iterator[tuple[int, dict[int, list[Sample]]]]:
    """Samples responses as `respond` does, batch by batch, for callers that save each batch.

    The prompts of batch i depend only on ``questions`` and ``settings.batch_size``. If all prompts
    fit into one batch, it has only as many rows as they need. At the end the speed is logged:
    tokens of responses, end-of-sequence included, per second of decoding.

    Args:
      done: indices into ``questions``; batches with no others are skipped.

    Yields:
      The number of a batch, and the samples of each of its prompts by index into ``questions``.
    """
    lengths = np.array([len(q.ids) for q in questions], np.int64)
    size, mesh, tokenizer = sampling.settings.batch_size, sampling.mesh, sampling.tokenizer
    size = min(size, fitting(len(questions), mesh))
    shapes, assignment = choose_shapes(
        lengths,
        np.ones((len(questions), 1), np.int64),
        count=1 if len(questions) <= size else 2,  # each is compiled
        multiple=16,
    )
    batches = deal_batches(shapes, assignment, batch_size=size, order=range(len(questions)))
    timed: list[tuple[int, int, float]] = []  # of every batch: shape, tokens, seconds
    with progress(sampling.title, len(questions)) as advance:
        for number, (shape, rows) in enumerate(zip(batches.shape, batches.rows, strict=True)):
            real = rows >= 0
            if not all(int(row) in done for row in rows[real]):
                mine = rows[own_rows(mesh, len(rows))]
                batch = put_rows(prompts_only(questions, mine, shapes[shape].prompt), mesh)
                since = time.perf_counter()
                # Waits, so that the seconds are right and memory holds the cache of one batch only.
                responses = _wait(_decode(sampling, params, batch))
                seconds = time.perf_counter() - since
                numbers = _fetch(responses, batch, params, ref_params, sampling.model)
                timed.append((int(shape), int(numbers.length[real].sum()), seconds))
                yield (
                    number,
                    {
                        int(rows[i]): _samples(
                            questions[rows[i]].prompt, numbers, int(i), tokenizer
                        )
                        for i in np.flatnonzero(real)
                    },
                )
            advance(int(real.sum()))
    if timed:
        log.info("%s: %s", sampling.title.strip(), speed(timed))


def _wait(computed: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Waits for arrays in Python, where Ctrl-C is heard, rather than in JAX."""
    while not all(x.is_ready() for x in computed):  # type: ignore[attr-defined]
        time.sleep(0.001)
    return jax.block_until_ready(computed)


class _Numbers(NamedTuple):
    """A batch's responses, on the host."""

    ids: np.ndarray  # [B, K, R]
    length: np.ndarray  # [B, K] and so on
    logps: np.ndarray
    reference: np.ndarray
    kl: np.ndarray


def _fetch(
    responses: tuple[Array, Array, Array],
    batch: Batch,
    params: Params | Mixture,
    ref_params: Params | None,
    model: ModelConfig,
) -> _Numbers:
    """Copies responses to the host; with a reference also its log-probabilities and the KL."""
    ids, length, logps = distributed.fetch(responses)
    reference = divergence = np.full(length.shape, np.nan, np.float32)
    if ref_params is not None:
        scored = dataclasses.replace(batch, response=responses[0], response_length=responses[1])
        reference, divergence = distributed.fetch(
            exact_kl(params, ref_params, scored, config=model)
        )
    return _Numbers(ids, length, logps, reference, divergence)


def _samples(prompt: str, numbers: _Numbers, row: int, tokenizer: Tokenizer) -> list[Sample]:
    """Makes the samples of one prompt of a batch."""
    return [
        Sample(
            prompt=prompt,
            response=tokenizer.decode(ids[:length].tolist()),
            length=int(length),
            ended=int(ids[length - 1]) in tokenizer.ends,
            logps=float(logps),
            reference=float(reference),
            kl=float(divergence),
        )
        for ids, length, logps, reference, divergence in zip(
            *(x[row] for x in numbers), strict=True
        )
    ]


def speed(timed: Sequence[tuple[int, int, float]]) -> str:
    """Formats the number of tokens, and tokens per second without the batches that compiled.

    Args:
      timed: shape, tokens and seconds of each batch; the first one of a shape compiles.
    """
    again = [i for i, (shape, *_) in enumerate(timed) if shape in [s for s, *_ in timed[:i]]]
    counted = [timed[i] for i in again] or timed
    rate = sum(n for _, n, _ in counted) / sum(s for *_, s in counted)
    how = "" if again else ", compilation included"
    return f"{sum(n for _, n, _ in timed):,} tokens, {rate:,.0f} tokens/s{how}"


def _decode(
    sampling: Sampling, params: Params | Mixture, batch: Batch
) -> tuple[Array, Array, Array]:
    """Decodes a batch: ids of responses, their lengths and their log-probabilities."""
    # Drops the fields of subclasses, such as the judge: they would only compile it again.
    settings = SamplingConfig(
        **{f.name: getattr(sampling.settings, f.name) for f in dataclasses.fields(SamplingConfig)}
    )
    model, eos = sampling.model, tuple(sampling.tokenizer.ends)
    prompts = (batch.prompt, batch.prompt_length)
    if settings.num_beams > 1:
        return beam_search(params, *prompts, config=model, settings=settings, eos=eos)
    draws = batch.prompt_id, sampling.key
    return sample(params, *prompts, *draws, config=model, settings=settings, eos=eos)


def prompts_only(questions: Sequence[Question], chosen: np.ndarray, length: int) -> Batch:
    """Makes a batch without responses; where ``chosen`` is -1, an empty prompt of weight 0."""
    b = len(chosen)
    prompt, prompt_length = np.zeros((b, length), np.int32), np.zeros(b, np.int32)
    numbers = np.zeros(b, np.int32)
    for i in np.flatnonzero(chosen >= 0):
        question = questions[chosen[i]]
        prompt[i, length - len(question.ids) :] = question.ids
        prompt_length[i], numbers[i] = len(question.ids), question.number
    fields: dict[str, Any] = dict(
        prompt=prompt,
        prompt_length=prompt_length,
        response=np.zeros((b, 1, 1), np.int32),
        response_length=np.zeros((b, 1), np.int32),
        weight=(chosen >= 0).astype(np.float32),
        prompt_id=numbers,
    )
    return Batch(**fields)


def first_of_each_prompt(data: Bucketed, limit: int) -> list[int]:
    """Finds the first row of each distinct prompt, for at most ``limit`` prompts."""
    seen: dict[str, int] = {}
    for row in range(len(data.dataset)):
        if len(seen) == limit:
            break
        seen.setdefault(data.dataset[row].prompt, row)
    return list(seen.values())
