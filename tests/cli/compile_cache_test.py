"""Compiled programs: where they are kept, for whom, and that a second start loads them."""

import stat

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from alignjax.cli import compile_cache
from alignjax.runtime import distributed

NAMES = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def cache(monkeypatch, tmp_path, caplog):
    """The user's cache folder, with JAX's settings as a program begins with them."""
    before = {name: jax.config.values[name] for name in NAMES}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in zip(NAMES, (None, -1, True, 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    with caplog.at_level("INFO", logger="alignjax"):
        yield tmp_path / "alignjax" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def loaded():
    """How many programs a start loads, of the one that it needs."""
    events = []
    compilation_cache.reset_cache()
    note = lambda event, **_: events.append(event)  # noqa: E731
    jax.monitoring.register_event_listener(note)
    try:
        jax.jit(lambda x: jnp.sin(x) * 7).lower(jax.ShapeDtypeStruct((3,), float)).compile()
    finally:
        jax.monitoring.unregister_event_listener(note)
    return events.count("/jax/compilation_cache/cache_hits")


def test_the_second_of_two_starts_loads_what_the_first_compiled(cache, caplog):
    assert loaded() == loaded() == 0  # without it nothing is kept
    compile_cache.use()
    compile_cache.say()
    assert caplog.messages == [f"compiled programs: kept in {cache}"]
    assert jax.config.jax_compilation_cache_max_size == 2 * 2**30
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert [loaded(), loaded()] == [0, 1]
    assert {p.suffix or p.name.rpartition("-")[2] for p in cache.iterdir()} == {
        *("cache", "atime", ".lockfile")
    }


def test_the_settings_of_the_user_come_first(cache, caplog):
    jax.config.update("jax_compilation_cache_max_size", 10**6)
    compile_cache.use()
    assert jax.config.jax_compilation_cache_max_size == 10**6
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    compile_cache.use()
    compile_cache.say()
    assert caplog.messages == ["compiled programs: kept in elsewhere"]
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_compilation_cache_dir", None)
    compile_cache.use()
    compile_cache.say()
    assert jax.config.jax_compilation_cache_dir is None
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("home", [True, False])
def test_a_folder_that_takes_no_files_is_one_line(cache, caplog, monkeypatch, home):
    if home:
        cache.parent.write_text("a file where the folder would be")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(compile_cache.pathlib.Path, "home", _no_home)
    compile_cache.use()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    line = record.getMessage()
    assert line.startswith("compiled programs: not kept (")
    assert ("alignjax" if home else "no home") in line
    assert line.endswith("), unless JAX_COMPILATION_CACHE_DIR names a folder")
    assert jax.config.jax_compilation_cache_dir is None


def _no_home():
    raise RuntimeError("no home")


def test_several_processes_share_none_by_themselves(cache, caplog, monkeypatch):
    """Some would load and some compile, which not every compiler survives."""
    monkeypatch.setattr(distributed, "several", lambda: True)
    compile_cache.use()
    compile_cache.say()
    assert "not kept by several processes" in caplog.messages[0]
    assert jax.config.jax_compilation_cache_dir is None


def test_what_a_killed_program_left_half_written_goes(cache):
    cache.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (cache / name).write_bytes(b"x" * 8)
    compile_cache.use()
    assert {p.name for p in cache.glob("*-*")} == {"whole-cache", "whole-atime"}
