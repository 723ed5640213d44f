"""Potentials that dyntrain brings itself: the EGNN family and analytic ones for tests."""
