"""With ``DYNTRAIN_REQUIRE_ENGINES`` set (`make test-engines`), a test that was skipped is a failure."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole file is skipped where its engine is missing."""
    report = yield
    if os.environ.get("DYNTRAIN_REQUIRE_ENGINES") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, but DYNTRAIN_REQUIRE_ENGINES is set"
    return report
