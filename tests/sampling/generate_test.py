"""From prompts to samples: whom is asked, what comes back as text, and how fast it was."""

import _thread
import dataclasses
import signal
import threading

import jax
import numpy as np
import pytest

from alignjax.config import EvaluateConfig
from alignjax.data.batching import bucket
from alignjax.models.mixture import mix
from alignjax.runtime.sharding import make_mesh
from alignjax.sampling import generate
from alignjax.sampling.generate import (
    Sampling,
    first_of_each_prompt,
    respond,
    speed,
    take_questions,
)
from tests import tiny

CONFIG, EOS = tiny.model(kv_heads=4), 5


class Words:
    """What sampling needs of a tokenizer."""

    ends = (EOS,)

    def decode(self, ids):
        return " ".join(str(i) for i in ids if i != EOS)


def respond_to(params, ref_params, data, **changes):
    settings = EvaluateConfig(
        **{**dict(prompts=5, samples=2, max_new_tokens=6, batch_size=4), **changes}
    )
    sampling = Sampling(CONFIG, Words(), settings, jax.random.key(11), make_mesh(2, 1, 1), "test")
    questions = take_questions(bucket(data, count=2, multiple=8), settings.prompts)
    return respond(sampling, params, questions, ref_params)


def test_responses_to_the_first_of_each_prompt():
    """And they do not depend on how many prompts are sampled at once."""
    data = tiny.dataset(14, longest=(12, 6))  # every prompt twice
    assert first_of_each_prompt(bucket(data, count=2, multiple=8), 5) == [0, 2, 4, 6, 8]
    assert len(first_of_each_prompt(bucket(data, count=2, multiple=8), 99)) == 7
    bent = tiny.params(CONFIG)
    bent["embed"]["embedding"][EOS] *= 4.0  # an end that is drawn often
    found = respond_to(bent, bent, data)
    assert [s.prompt for s in found] == [f"prompt {i}" for i in range(5) for _ in range(2)]
    for s in found:
        assert s.logps == pytest.approx(s.reference, abs=1e-4)  # the same network
        assert s.kl == pytest.approx(0, abs=1e-4)
        assert len(s.response.split()) == s.length - s.ended
        assert s.ended or s.length == 6
    assert {s.ended for s in found} == {True, False}
    for one, other in zip(found, respond_to(bent, None, data, batch_size=8), strict=True):
        numbers = dict(logps=one.logps, reference=one.reference, kl=one.kl)
        assert dataclasses.replace(other, **numbers) == one
        assert one.logps == pytest.approx(other.logps, abs=1e-4)
        assert np.isnan([other.reference, other.kl]).all()  # none was given


def test_the_speed_is_logged_and_leaves_out_what_compiled(caplog):
    assert speed([(0, 100, 50.0), (0, 30, 1.0), (1, 5, 50.0), (0, 10, 1.0)]) == (
        "145 tokens, 20 tokens/s"
    )
    assert speed([(0, 100, 1.0), (1, 50, 2.0)]) == ("150 tokens, 50 tokens/s, compilation included")
    with caplog.at_level("INFO", logger="alignjax"):
        found = respond_to(tiny.params(CONFIG), None, tiny.dataset(14, longest=(12, 6)))
    total = sum(s.length for s in found)
    assert f"test: {total} tokens, " in caplog.text


def test_a_beam_search_and_a_mixture_respond():
    """As text, the best first; and a mixture's divergence from one of its policies."""
    data, params = tiny.dataset(14, longest=(12, 6)), tiny.params(CONFIG)
    mixture = mix([params, tiny.params(CONFIG, seed=1)], [1.0, 0.0])
    plain = respond_to(params, params, data, num_beams=3)
    assert [s.prompt for s in plain] == [f"prompt {i}" for i in range(5) for _ in range(2)]
    for first, second in zip(plain[::2], plain[1::2], strict=True):
        assert first.response != second.response
        assert first.logps / first.length >= second.logps / second.length
    for one, other in zip(plain, respond_to(mixture, params, data, num_beams=3), strict=True):
        assert (one.response, one.logps) == (other.response, other.logps)
        assert other.kl == pytest.approx(0, abs=1e-4)
        assert other.reference == pytest.approx(one.logps, abs=1e-4)


def test_ctrl_c_is_heard_while_a_batch_is_computed():
    class Never:
        def is_ready(self):
            return False

    # A shell that starts the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.2, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            generate._wait((Never(),))
    finally:
        signal.signal(signal.SIGINT, before)


def test_prompts_that_fit_into_one_batch_are_one_without_more_padding_than_devices_want(
    monkeypatch,
):
    seen = []

    def decode(sampling, params, batch):
        b, n = len(batch.prompt), sampling.settings.samples
        seen.append(b)
        ids = np.full((b, n, 6), EOS, np.int32)
        return tuple(jax.numpy.asarray(x) for x in (ids, ids[..., 0] * 0 + 1, ids[..., 0] * 0.0))

    monkeypatch.setattr(generate, "_decode", decode)
    data = tiny.dataset(14, longest=(40, 6))
    found = respond_to(None, None, data, batch_size=16)
    assert seen == [6]  # 5 prompts on 2 devices
    seen.clear()
    assert [s.prompt for s in respond_to(None, None, data, batch_size=2)] == [
        s.prompt for s in found
    ]
    assert set(seen) == {2}
    assert len(seen) >= 3
