"""What every test relies on: a CPU with 8 virtual devices, and the real data where there is any."""

import os
from pathlib import Path

# Read when JAX makes its CPU client. On few cores the default thread pool is too small for
# sharded programs dispatched one after another: JAX 0.10 and 0.11 abort in a rendezvous.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

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
