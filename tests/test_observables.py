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


def test_survival_band_and_median_interval_of_published_data() -> None:
    """Remission of 21 leukaemia patients with 6-MP (Freireich 1963); lifelines: 23 (13, ∞) weeks."""
    times = np.array(
        [6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35], dtype=float
    )
    failed = np.arange(21) < 9
    curve = obs.survival_curve(times, failed)
    np.testing.assert_allclose(curve.share[[0, -1]], [18 / 21, 0.44817927], rtol=1e-7)
    np.testing.assert_allclose(curve.low[[0, -1]], [0.61971796, 0.18805201], rtol=1e-7)
    np.testing.assert_allclose(curve.high[[0, -1]], [0.95155175, 0.68014263], rtol=1e-7)
    assert obs.median_time_to_failure(times, failed) == 23.0
    assert obs.median_interval(times, failed) == (13.0, None)
    # Its control group: all relapsed, median 8 (4, 11) weeks; the two differ beyond chance.
    placebo = np.array([1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23], dtype=float)
    relapsed = np.ones(21, dtype=bool)
    assert obs.median_interval(placebo, relapsed) == (4.0, 11.0)
    assert np.isnan(obs.survival_curve(placebo, relapsed).low[-1])
    assert obs.log_rank_test(times, failed, placebo, relapsed) < 3e-4  # χ² says 4e-5
    factor = obs.failure_factor(placebo, relapsed, times, failed, 35.0)
    assert factor is not None and factor.value == 23 / 8 and not factor.is_bound
    assert 1.2 < factor.low < 2.3 and factor.high is None


def test_the_log_rank_test_is_exact_for_few_runs() -> None:
    early, late = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0, 7.0])
    all_failed = np.ones(4, dtype=bool)
    # Of the 35 ways to choose three runs, the one found (|Σ| = 2.04) and the last three (2.28) are so uneven.
    assert obs.log_rank_test(early, all_failed[:3], late, all_failed) == pytest.approx(2 / 35)
    assert obs.log_rank_test(late, all_failed, late, all_failed) == 1.0
    none = np.zeros(4, dtype=bool)
    assert obs.log_rank_test(late, none, late, none) == 1.0


def test_no_factor_without_half_of_the_control() -> None:
    times = np.array([10.0, 100.0, 100.0, 100.0])
    few, all_failed = times < 100, np.ones(4, dtype=bool)
    assert obs.failure_factor(times, few, times, all_failed, 100.0) is None
    assert obs.failure_factor(np.zeros(4), all_failed, times, all_failed, 100.0) is None  # at once
    bound = obs.failure_factor(np.full(4, 10.0), all_failed, times * 0 + 100.0, ~all_failed, 100.0)
    assert bound == obs.Factor(10.0, True, 10.0, None)


def test_nve_score_is_the_drift_in_units_of_the_kinetic_energy_s_spread() -> None:
    times = np.linspace(0, 1000, 1001)
    kinetic = 0.5 + 0.1 * np.sqrt(2) * np.sin(2 * np.pi * times / 50)
    assert obs.nve_score(times, 0.03 * times / 1000, kinetic) == pytest.approx(0.3, rel=1e-3)
    assert obs.nve_score(times, -0.03 * times / 1000, kinetic) == pytest.approx(0.3, rel=1e-3)
    with pytest.raises(ValueError, match="does not fluctuate"):
        obs.nve_score(times, times, np.ones_like(times))


def test_stability_scores_of_mlipaudit() -> None:
    assert obs.stability_score(1000, None, None) == 1.0
    assert obs.stability_score(1000, 400, 200) == 0.2
    assert obs.stability_score(1000, None, 400) == 0.7


def test_angles_of_a_bent_molecule_across_a_boundary() -> None:
    positions = np.array([[[0.5, 0, 0], [0, 0, 0], [0, 9.0, 0]], [[1, 1, 0], [0, 0, 0], [0, 9.0, 0]]])
    found = obs.angles(positions, np.array([1]), np.array([[0, 2]]), np.array([[[0, 0, 0], [0, -10.0, 0]]]))
    np.testing.assert_allclose(found, [[90.0], [135.0]])


def test_density_is_a_share_over_the_width() -> None:
    values = np.array([0.1, 0.1, 0.4, 2.0])
    np.testing.assert_allclose(obs.density(values, np.array([0, 0.25, 0.5])), [2.0, 1.0])


def test_an_ideal_gas_has_g_of_one() -> None:
    random = np.random.default_rng(0)
    positions = random.uniform(0, 10, size=(400, 3))
    apart = positions[:, None] - positions[None]
    apart -= 10 * np.round(apart / 10)
    distances = np.linalg.norm(apart, axis=-1)[np.triu_indices(400, 1)]
    edges = np.linspace(0, 5, 11)
    g = obs.rdf(np.histogram(distances, edges)[0], edges, 400 * 399 // 2, 1000.0)
    np.testing.assert_allclose(g[2:], 1.0, atol=0.1)


def test_the_spectrum_of_an_oscillator_peaks_at_its_wavenumber() -> None:
    times = np.arange(1000) * 1.0  # fs
    speed = np.zeros((1000, 2, 3))
    speed[:, 0, 0] = np.sin(2 * np.pi * times / 10.0)  # 3336 cm⁻¹
    speed[:, 1, 1] = np.sin(2 * np.pi * times / 40.0)  # 834 cm⁻¹, twice the mass
    wavenumbers, found = obs.vdos(speed, np.array([1.0, 2.0]), 1.0)
    assert found.sum() * wavenumbers[1] == pytest.approx(1.0)
    for period, share in ((10.0, 1 / 3), (40.0, 2 / 3)):
        near = np.abs(wavenumbers - obs.WAVENUMBER / period) < 100
        assert found[near].sum() * wavenumbers[1] == pytest.approx(share, abs=1e-3)
        assert wavenumbers[near][found[near].argmax()] == pytest.approx(33356.41 / period, rel=1e-6)
    assert obs.vdos(0 * speed, np.ones(2), 1.0)[1].max() == 0.0


def test_displacement_of_straight_flight_and_of_a_random_walk() -> None:
    times = np.arange(200.0)
    flight = times[:, None, None] * np.array([[1.0, 2.0, 2.0]])
    np.testing.assert_allclose(obs.mean_square_displacement(flight, 5), 9.0 * np.arange(5) ** 2)
    walk = np.cumsum(np.random.default_rng(0).normal(size=(4000, 20, 3)), axis=0)
    np.testing.assert_allclose(obs.mean_square_displacement(walk, 6)[1:], 3.0 * np.arange(1, 6), rtol=0.05)
    with pytest.raises(ValueError, match="5 lags need more"):
        obs.mean_square_displacement(flight[:5], 5)


def test_error_bars_and_what_chance_makes_of_two_samples() -> None:
    random = np.random.default_rng(1)
    one, other = (obs.estimate(random.normal(size=(50, 400))) for _ in range(2))
    assert one.error.mean() == pytest.approx(1 / np.sqrt(50), rel=0.02)
    found, chance = obs.distance_between(one, other, np.full(400, 0.1))
    assert found == pytest.approx(chance, rel=0.1)
    assert np.isnan(obs.distance_between(one, obs.estimate(np.ones((1, 400))), np.ones(400))[1])
