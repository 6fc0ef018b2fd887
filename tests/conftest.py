"""What every test relies on: a CPU with 8 virtual devices, and the real data where there is any."""

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# Read when JAX makes its CPU client. On few cores the default thread pool is too small for
# sharded programs dispatched one after another: JAX 0.10 and 0.11 abort in a rendezvous.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much more than they compute. jaxlib 0.10 also has an older code generator, which
# is several times quicker; 0.12 has none, and an unknown flag ends the process. Programs that
# tests start inherit the variable.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
        os.environ.get("XLA_FLAGS", ""),
    )
)

import jax
import pytest

# Set here rather than in XLA_FLAGS, so that programs which tests start see one device as usual.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets: $ALIGNJAX_DATA, or shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("ALIGNJAX_DATA", beside))
    if not path.is_dir():
        pytest.skip(f"needs the real data sets: no folder {path}; set ALIGNJAX_DATA")
    return path


@pytest.fixture(scope="session")
def compiled(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Environment of programs that tests start: they compile with little optimisation, once.

    What one of them compiled the next ones reuse, whichever process of pytest starts them, and
    so do later runs of the tests (``pytest --cache-clear`` forgets it). All that are compared get
    the same code.
    """
    cache = getattr(pytestconfig, "cache", None)  # None with -p no:cacheprovider
    folder = cache.mkdir("compiled") if cache else tmp_path_factory.mktemp("compiled")
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


@pytest.fixture(scope="module")
def compiled_here(compiled: dict[str, str]) -> Iterator[None]:
    """The same for the process of the tests themselves, in one file."""
    from jax.experimental.compilation_cache import compilation_cache

    here = {
        "jax_compilation_cache_dir": compiled["JAX_COMPILATION_CACHE_DIR"],
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in here}
    for settings in (here, before):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if settings is here:
            yield


@pytest.fixture(scope="module")
def whole_run(compiled_here: None) -> None:
    """For fixtures that train and sample: every test that uses one of them is slow."""


# Folders whose files take long come first, so that no process is left with one of them at the end.
FIRST = (
    "tests/resume",
    "tests/processes",
    "tests/recipes",
    "tests/stages",
    "tests/parity",
    "tests/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "whole_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(
        key=lambda item: next((i for i, x in enumerate(FIRST) if item.nodeid.startswith(x)), 9)
    )
