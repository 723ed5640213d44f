"""What all tests share: the reference data beside the checkout, one torch thread, repeatable examples."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples every time and no clock: a property test fails for everybody or for nobody. New examples:
# `pytest --hypothesis-profile=explore`.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data; the tests that use it are marked ``shared``."""
    return SHARED


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    # Workers share the cores; and sums on one thread have one order: "to the last digit" can be tested.
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared") and not SHARED.is_dir():
        pytest.skip(f"needs the reference data in {SHARED}, which is not there")
    if "shared_data" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("shared"):
        pytest.fail("a test that uses shared_data must be marked @pytest.mark.shared")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where ``DYNTRAIN_REQUIRE_SHARED`` is set (in CI), a skipped ``shared`` test is a failure."""
    report = yield
    required = os.environ.get("DYNTRAIN_REQUIRE_SHARED") and item.get_closest_marker("shared")
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but DYNTRAIN_REQUIRE_SHARED is set: {report.longrepr}"
    return report
