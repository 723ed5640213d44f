"""Does `dyntrain improve` beat the same number of other reference calculations? A box of 8 waters, GFN1-xTB.

    python examples/improve_water.py --output water

The arms and what is measured: improve_comparison.py. A reference calculation takes about 0.2 s, the whole
about half an hour. Runs that may fail have velocities drawn at `--kelvin`.
"""

import dataclasses

from improve_comparison import SHORT, Sizes, System, main

SYSTEM = System("water-box-8", "GFN1-xTB", kelvin=300.0, n_atoms=24)

SIZES = Sizes(
    frames=800,
    thermalise_steps=300,
    held_out_steps=599,
    start_evaluations=8000,
    round_evaluations=4000,
    segments=8,
    segment_length=8,
    explored_ps=0.4,
    drawn_K=600.0,
    n_runs=8,
    run_length_fs=500.0,
    n_audited=8,
    audit_fs=200.0,
)

SMALLEST = dataclasses.replace(
    SHORT,
    frames=14,
    thermalise_steps=1,
    held_out_steps=6,
    start_evaluations=800,
    segments=2,
    segment_length=3,
    explored_ps=0.02,
    n_runs=2,
    run_length_fs=20.0,
    n_audited=1,
    audit_fs=10.0,
)

if __name__ == "__main__":
    main(SYSTEM, SIZES, SMALLEST, title=__doc__.splitlines()[0])
