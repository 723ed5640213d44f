"""Observables against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dyntrain import observables as obs

DIFFERENCE = np.array([[3.0, 0.0, 0.0], [0.0, -4.0, 0.0], [1.0, 1.0, 1.0]])
SYSTEM = np.array([0, 0, 1])


def test_errors_of_each_system_by_hand() -> None:
    np.testing.assert_allclose(obs.mae_per_system(DIFFERENCE, SYSTEM, 2), [7 / 6, 1.0])
    np.testing.assert_allclose(obs.rmse_per_system(DIFFERENCE, SYSTEM, 2), [np.sqrt(25 / 6), 1.0])
    np.testing.assert_allclose(
        obs.displacement_per_system(DIFFERENCE, SYSTEM, 2), [np.sqrt(25 / 2), np.sqrt(3)]
    )


def test_a_system_without_atoms_has_no_error() -> None:
    assert np.isnan(obs.mae_per_system(DIFFERENCE, SYSTEM, 3)[2])


@pytest.mark.parametrize("elements", [(1, 8), (8, 1)])
def test_errors_of_each_element_follow_the_order_asked_for(elements: tuple[int, int]) -> None:
    found = obs.mae_per_element(DIFFERENCE, np.array([8, 1, 8]), SYSTEM, elements, 2)
    expected = {8: [1.0, 1.0], 1: [4 / 3, np.nan]}
    np.testing.assert_allclose(found, np.array([expected[z] for z in elements]).T)


def test_a_burst_start_counts_as_infinitely_wrong() -> None:
    errors = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, np.nan, 3.0, 4.0], [np.nan, np.nan, np.nan, 4.0]])
    np.testing.assert_allclose(obs.quantile_over_starts(errors, 0.5), [2.5, 3.5, np.inf])
    np.testing.assert_allclose(obs.quantile_over_starts(errors, 0.25), [1.75, 2.5, np.inf])
    np.testing.assert_allclose(obs.quantile_over_starts(errors, 1.0), [4.0, np.inf, np.inf])
    np.testing.assert_allclose(obs.quantile_over_starts(errors, 0.0), [1.0, 1.0, 4.0])


def test_doubling_time_of_an_exponential_is_exact_and_ends_at_the_ceiling() -> None:
    times = np.linspace(0, 200, 401)
    growing = 1e-4 * 2 ** (times / 20)
    assert obs.doubling_time(times, np.minimum(growing, 0.1), 0.05) == pytest.approx(20.0)
    both = np.stack([growing, 3 * growing], axis=1)
    assert obs.doubling_time(times, both, 10.0) == pytest.approx(20.0)


@pytest.mark.parametrize("deviations", [np.full(50, 1e-4), 1e-4 * 1.5 ** np.linspace(0, 1, 50)])
def test_deviations_that_do_not_double_have_no_doubling_time(deviations: np.ndarray) -> None:
    assert obs.doubling_time(np.linspace(0, 100, 50), deviations, 0.1) is None
    assert obs.doubling_time(np.linspace(0, 100, 50), deviations, 1e-5) is None


def test_drift_is_the_slope_per_atom_in_meV_and_ps() -> None:
    times = np.linspace(0, 2000, 101)  # fs
    # 9 atoms that gain 0.018 eV in 2 ps: 1 meV/atom/ps, whatever oscillates around it.
    energy = -5.0 + 0.018 * times / 2000 + 0.01 * np.cos(times / 1000 * 2 * np.pi * 5)
    assert obs.energy_drift(times, energy, 9) == pytest.approx(1.0, abs=0.02)
    assert obs.energy_drift(times, -energy, 9) == pytest.approx(-1.0, abs=0.02)
    with pytest.raises(ValueError, match="at least 3 times"):
        obs.energy_drift(times[:2], energy[:2], 9)


def test_bond_lengths_count_the_lattice_vector() -> None:
    positions = np.array([[0.1, 0, 0], [4.8, 0, 0]])
    lengths = obs.bond_lengths(positions, np.array([0]), np.array([1]), np.array([[-5.0, 0, 0]]))
    np.testing.assert_allclose(lengths, [0.3])


def test_kaplan_meier_against_hand_numbers() -> None:
    # Failures at 1, 3, 3, 5; a run censored at 2, another at 5: at risk 6, 4, 2.
    times = np.array([1.0, 2.0, 3.0, 3.0, 5.0, 5.0])
    failed = np.array([True, False, True, True, True, False])
    event_times, survival = obs.kaplan_meier(times, failed)
    np.testing.assert_allclose(event_times, [1, 3, 5])
    np.testing.assert_allclose(survival, [5 / 6, 5 / 6 * 2 / 4, 5 / 6 * 2 / 4 * 1 / 2])
    assert obs.median_time_to_failure(times, failed) == 3.0
    # 1·1 + 5/6·2 + 5/12·2
    assert obs.restricted_mean_time_to_failure(times, failed, 5.0) == pytest.approx(1 + 10 / 6 + 10 / 12)


def test_censored_only_at_the_end_the_restricted_mean_is_the_plain_mean() -> None:
    times = np.array([120.0, 700.0, 1000.0, 1000.0, 1000.0])
    failed = times < 1000
    assert obs.restricted_mean_time_to_failure(times, failed, 1000.0) == pytest.approx(times.mean())


@pytest.mark.parametrize(("n_failed", "median"), [(0, None), (3, None), (4, 40.0), (8, 40.0)])
def test_no_median_while_fewer_than_half_have_failed(n_failed: int, median: float | None) -> None:
    times = np.where(np.arange(8) < n_failed, 10.0 * (1 + np.arange(8)), 1000.0)
    assert obs.median_time_to_failure(times, np.arange(8) < n_failed) == median


def test_numbers_for_json() -> None:
    assert obs.finite_or_none(1.5) == 1.5
    assert obs.finite_or_none(np.inf) is None
    assert obs.finite_or_none(np.nan) is None
