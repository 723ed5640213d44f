"""Does `dyntrain improve` beat as many other reference calculations? H2 on Pd6 at graphene, GFN1-xTB.

    dyntrain aimd h2-pd6-graphene --output runs --runs 6
    python examples/improve_h2pd6gra.py --output slab --data runs

The arms and what is measured: improve_comparison.py. Velocities are the recorded ones: what counts here is
the molecule that flies in. A reference calculation takes about a second; `--short` takes EMT instead.
"""

import dataclasses

from improve_comparison import SHORT, Sizes, System, main

from dyntrain.reference.h2_pd6_graphene import ELECTRONS

SYSTEM = System("h2-pd6-graphene", "GFN1-xTB", kelvin=300.0, n_atoms=57, options=dict(ELECTRONS))
QUICK = System("h2-pd6-graphene", "emt", kelvin=300.0, n_atoms=57)

SIZES = Sizes(
    frames=256,
    held_out_steps=400,
    start_evaluations=6000,
    round_evaluations=3000,
    segments=8,
    segment_length=8,
    explored_ps=0.2,
    n_runs=8,
    n_audited=4,
    audit_fs=200.0,
    batch_size=8,
)

SMALLEST = dataclasses.replace(
    SHORT,
    frames=14,
    thermalise_steps=1,
    held_out_steps=6,
    start_evaluations=200,
    round_evaluations=50,
    segments=2,
    segment_length=3,
    explored_ps=0.02,
    n_runs=2,
    n_audited=2,
    audit_fs=10.0,
    batch_size=4,
)

if __name__ == "__main__":
    main(SYSTEM, SIZES, SMALLEST, QUICK, title=__doc__.splitlines()[0])
