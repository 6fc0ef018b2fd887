"""What every test relies on: a CPU with 8 virtual devices, and the real data where there is any."""

import gc
import os
import tempfile
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
def compiled() -> dict[str, str]:
    """Environment of programs that tests start: they compile with little optimisation, once.

    What one of them compiled the next ones reuse, whichever process of pytest starts them, and
    so do later runs of the tests (``pytest --cache-clear`` forgets it). All that are compared get
    the same code.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def whole_run() -> None:
    """For fixtures that train and sample: every test that uses one of them is slow."""


# Folders whose files take long come first, so that no process is left with one of them at the end.
FIRST = (
    "tests/processes",
    "tests/recipes",
    "tests/resume",
    "tests/training",
    "tests/models",
    "tests/stages",
    "tests/sampling",
    "tests/parity",
    "tests/",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keeps what is compiled, also by programs that tests start, out of the user's own folder."""
    cache = getattr(config, "cache", None)  # None with -p no:cacheprovider
    folder = str(cache.mkdir("compiled") if cache else tempfile.mkdtemp("compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        whole = "whole_run" in getattr(item, "fixturenames", ())
        if whole or item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)
    items.sort(
        key=lambda item: next((i for i, x in enumerate(FIRST) if item.nodeid.startswith(x)), 9)
    )
    # Tracing makes many small objects, and each full collection would go through all tests again.
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
