"""Counts decoding steps."""

import jax
import pytest

from alignjax.models.transformer import Transformer


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of the decoding steps that run, of programs compiled in this test."""
    seen: list[int] = []
    inner = Transformer.decode

    def counting(self, token, prompt_length, position, cache):
        jax.debug.callback(lambda t: seen.append(int(t)), position)
        return inner(self, token, prompt_length, position, cache)

    monkeypatch.setattr(Transformer, "decode", counting)
    return seen
