"""Skips the tests of packages that are missing unless required; other packages' warnings are no errors."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

THIRD_PARTY = [
    # SevenNet, NequIP, TorchANI and e3nn still use TorchScript here and there.
    "ignore:`torch.jit.[a-z_]+` is deprecated:DeprecationWarning",
    # MACE's files and copies of its modules hold such scripts.
    "ignore:`torch.jit.(save|load)` is deprecated:DeprecationWarning",
    # SevenNet's advice to install a CUDA library, at every calculator that is made.
    "ignore:No tensor product accelerator is enabled:UserWarning",
    # MACE loads pickles of its own and of e3nn with torch's restriction lifted.
    "ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD detected:UserWarning",
    # e3nn 0.4.4 scripts modules with annotations that TorchScript does not read.
    "ignore:The TorchScript type system doesn't support instance-level annotations:UserWarning",
    # TorchANI's advice to build its CUDA extensions, as it is imported.
    "ignore:The extensions:UserWarning",
    # CHGNet's graphs make a plain tensor of volumes that carry a gradient.
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning",
]


def pytest_configure(config: pytest.Config) -> None:
    for line in THIRD_PARTY:
        config.addinivalue_line("filterwarnings", line)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A family named in ``DYNTRAIN_REQUIRE_ADAPTERS`` (as ``make test-adapters`` does) must be installed."""
    report = yield
    required = os.environ.get("DYNTRAIN_REQUIRE_ADAPTERS", "").split()
    if report.skipped and collector.path.stem.removeprefix("test_") in required:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, but its package is required: {report.longrepr}"
    return report
