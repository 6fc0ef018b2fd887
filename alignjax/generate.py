"""Sampling: K responses per prompt from one prefill, with a cache of keys and values.

The prompt runs once; its keys and values are shared by the K responses. Randomness is derived
from ``(key, prompt_id, response number, token number)``, so what is sampled for a prompt depends
neither on the batch it is in nor on the number of devices.
"""

import dataclasses
import functools
from collections.abc import Container, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax import kl
from alignjax.config import CandidatesConfig, EvaluateConfig
from alignjax.data.batching import Bucketed, choose_shapes, plan_batches
from alignjax.data.tokenizer import Tokenizer
from alignjax.metrics import progress
from alignjax.models.attention import soft_cap
from alignjax.models.config import ModelConfig
from alignjax.models.transformer import Cache, Transformer, unembedding
from alignjax.sharding import put_rows
from alignjax.types import Array, Batch, Params


@functools.partial(
    jax.jit,
    static_argnames=("config", "samples", "max_new_tokens", "temperature", "top_p", "top_k", "eos"),
)
def sample(
    params: Params,
    prompt: Array,
    prompt_length: Array,
    prompt_id: Array,
    key: Array,
    *,
    config: ModelConfig,
    samples: int,
    max_new_tokens: int,
    eos: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> tuple[Array, Array, Array]:
    """Samples K responses for each prompt; stops when all have ended.

    Args:
      params: the policy.
      prompt: ``[B, P]`` int32, left-padded.
      prompt_length: ``[B]`` int32, at least 1.
      prompt_id: ``[B]`` int32, seeds each prompt's randomness.
      key: PRNG key of the whole call.
      config: the policy's shape.
      samples: K.
      max_new_tokens: R, the room for a response, end-of-sequence included.
      eos: id that ends a response.
      temperature: 0 takes the likeliest id.
      top_p: keeps the likeliest ids that together reach this probability; 1 keeps all.
      top_k: keeps the k likeliest ids; 0 keeps all.

    Returns:
      ``[B, K, R]`` int32 responses (0 after their end), ``[B, K]`` int32 lengths with the
      end-of-sequence counted, and ``[B, K]`` float32 log-probabilities in nats of what was
      sampled, under the policy itself: temperature 1, nothing cut.
    """
    model = Transformer(config)
    table = unembedding(params, config)
    b, k, r = len(prompt), samples, max_new_tokens
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(prompt_id)
    keys = jax.vmap(lambda q: jax.vmap(lambda j: jax.random.fold_in(q, j))(jnp.arange(k)))(keys)
    prefilled: Any = model.apply(
        {"params": params}, prompt, prompt_length, k, r, method=Transformer.prefill
    )
    hidden, cache = prefilled
    hidden = jnp.broadcast_to(hidden[:, None], (b, k, hidden.shape[-1]))

    def draw(hidden: Array, t: Array) -> tuple[Array, Array]:
        logits = jnp.einsum(
            "bkd,vd->bkv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        logits = soft_cap(logits, config.logit_softcap)
        if temperature == 0:
            token = jnp.argmax(logits, axis=-1)
        else:
            step_keys = jax.vmap(jax.vmap(lambda q: jax.random.fold_in(q, t)))(keys)
            kept = filter_logits(logits / temperature, top_p=top_p, top_k=top_k)
            token = jax.vmap(jax.vmap(jax.random.categorical))(step_keys, kept)
        logps = jax.nn.log_softmax(logits, axis=-1)
        return token.astype(jnp.int32), jnp.take_along_axis(logps, token[..., None], -1)[..., 0]

    Carry = tuple[Array, Array, Cache, Array, Array, Array, Array]

    def go_on(carry: Carry) -> Array:
        t, _, _, _, _, _, done = carry
        return (t < r) & ~done.all()

    def body(carry: Carry) -> Any:
        t, hidden, cache, out, length, total, done = carry
        token, logps = draw(hidden, t)
        token = jnp.where(done, 0, token)
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, :, None], t, axis=2)
        length = length + ~done
        total = total + jnp.where(done, 0.0, logps)
        done = done | (token == eos)
        decoded: Any = model.apply(
            {"params": params}, token, prompt_length, t, cache, method=Transformer.decode
        )
        hidden, cache = decoded
        return t + 1, hidden, cache, out, length, total, done

    start = (
        jnp.zeros((), jnp.int32),
        hidden,
        cache,
        jnp.zeros((b, k, r), jnp.int32),
        jnp.zeros((b, k), jnp.int32),
        jnp.zeros((b, k), jnp.float32),
        jnp.zeros((b, k), bool),
    )
    _, _, _, out, length, total, _ = jax.lax.while_loop(go_on, body, start)
    return out, length, total


def filter_logits(logits: Array, *, top_p: float = 1.0, top_k: int = 0) -> Array:
    """Sets the logits of ids that may not be drawn to a value that is never drawn.

    Args:
      logits: ``[..., vocab]`` float32.
      top_p: keeps the smallest set of likeliest ids whose probability reaches it.
      top_k: keeps the k likeliest ids; 0 keeps all. Ties at the edge are all kept.
    """
    low = jnp.finfo(logits.dtype).min
    if top_k and top_k < logits.shape[-1]:
        edge = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < edge, low, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability  # mass of likelier ids
        edge = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < edge, low, logits)
    return logits


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sampled response."""

    prompt: str
    response: str
    length: int  # tokens, end-of-sequence included
    ended: bool  # by an end-of-sequence token, rather than for lack of room
    logps: float  # nats under the policy that sampled it, temperature 1
    reference: float  # nats under the reference; NaN when none was given
    kl: float  # nats from the reference, summed over its tokens; see `kl.against`


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A prompt to respond to."""

    number: int  # seeds its randomness; a row of the dataset
    prompt: str
    ids: np.ndarray  # [P] int32


def questions(data: Bucketed, limit: int) -> list[Question]:
    """The first distinct prompts of a dataset, at most ``limit``, numbered by their row."""
    found = []
    for row in first_of_each_prompt(data, limit):
        example = data.dataset[row]
        found.append(Question(row, example.prompt, example.prompt_ids))
    return found


def respond(
    params: Params,
    ref_params: Params | None,
    asked: Sequence[Question],
    *,
    model: ModelConfig,
    tokenizer: Tokenizer,
    settings: EvaluateConfig | CandidatesConfig,
    key: Array,
    mesh: Mesh,
    title: str,
) -> list[Sample]:
    """Samples responses to prompts.

    Args:
      params: the policy.
      ref_params: a network whose log-probabilities of the samples are wanted too, or None.
      asked: the prompts.
      settings: how many responses to each, and how to draw them.

    Returns:
      ``settings.samples`` responses per prompt, in the order of ``asked``.
    """
    out: dict[int, list[Sample]] = {}
    for _, found in respond_in_batches(
        params,
        ref_params,
        asked,
        model=model,
        tokenizer=tokenizer,
        settings=settings,
        key=key,
        mesh=mesh,
        title=title,
    ):
        out |= found
    return [s for i in sorted(out) for s in out[i]]


def respond_in_batches(
    params: Params,
    ref_params: Params | None,
    asked: Sequence[Question],
    *,
    model: ModelConfig,
    tokenizer: Tokenizer,
    settings: EvaluateConfig | CandidatesConfig,
    key: Array,
    mesh: Mesh,
    title: str,
    done: Container[int] = (),
) -> Iterator[tuple[int, dict[int, list[Sample]]]]:
    """As `respond`, batch by batch: for work that is kept as it goes.

    Which prompts batch i holds depends on ``asked`` and ``settings.batch_size`` alone.

    Args:
      done: numbers of batches to leave out.

    Yields:
      The number of a batch, and the samples of each of its prompts by index into ``asked``.
    """
    lengths = np.array([len(q.ids) for q in asked], np.int64)
    shapes, assignment = choose_shapes(
        lengths, np.ones((len(asked), 1), np.int64), count=2, multiple=16
    )
    plan = plan_batches(shapes, assignment, batch_size=settings.batch_size, order=range(len(asked)))
    with progress(title, len(asked)) as advance:
        for number, (shape, chosen) in enumerate(zip(plan.shape, plan.rows, strict=True)):
            real = chosen >= 0
            if number in done:
                advance(int(real.sum()))
                continue
            batch = put_rows(_prompts_only(asked, chosen, shapes[shape].prompt), mesh)
            tokens, length, logps = sample(
                params,
                batch.prompt,
                batch.prompt_length,
                batch.prompt_id,
                key,
                config=model,
                samples=settings.samples,
                max_new_tokens=settings.max_new_tokens,
                eos=tokenizer.eos_id,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
            )
            reference = divergence = np.full(length.shape, np.nan, np.float32)
            if ref_params is not None:
                scored = dataclasses.replace(batch, response=tokens, response_length=length)
                found = kl.against(params, ref_params, scored, config=model)
                reference, divergence = (np.asarray(x) for x in found)
            ids, counts, nats = (np.asarray(x) for x in (tokens, length, logps))
            yield (
                number,
                {
                    int(chosen[i]): [
                        Sample(
                            prompt=asked[chosen[i]].prompt,
                            response=tokenizer.decode(ids[i, j, : counts[i, j]].tolist()),
                            length=int(counts[i, j]),
                            ended=bool(ids[i, j, counts[i, j] - 1] == tokenizer.eos_id),
                            logps=float(nats[i, j]),
                            reference=float(reference[i, j]),
                            kl=float(divergence[i, j]),
                        )
                        for j in range(settings.samples)
                    ]
                    for i in np.flatnonzero(real)
                },
            )
            advance(int(real.sum()))


def _prompts_only(asked: Sequence[Question], chosen: np.ndarray, length: int) -> Batch:
    """A batch without responses; where ``chosen`` is -1, of an empty prompt and weight 0."""
    b = len(chosen)
    prompt, prompt_length = np.zeros((b, length), np.int32), np.ones(b, np.int32)
    numbers = np.zeros(b, np.int32)
    for i in np.flatnonzero(chosen >= 0):
        question = asked[chosen[i]]
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
    """Rows that hold a prompt for the first time, at most ``limit``."""
    seen: dict[str, int] = {}
    for row in range(len(data.dataset)):
        if len(seen) == limit:
            break
        seen.setdefault(data.dataset[row].prompt, row)
    return list(seen.values())
