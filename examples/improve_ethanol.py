"""Does `dyntrain improve` beat the same number of other reference calculations? Ethanol, GFN2-xTB.

    python examples/improve_ethanol.py --output few --frames 256 --kelvin 1000
    python examples/improve_ethanol.py --output paper --network paper_egnn --kelvin 1000

The arms and what is measured: improve_comparison.py. `--short` is the same code with small numbers, for a
look in under a minute; nothing can be concluded from its figures.
"""

import dataclasses

from improve_comparison import SHORT, Sizes, System, main

SYSTEM = System("ethanol", "GFN2-xTB", kelvin=500.0, n_atoms=9)

if __name__ == "__main__":
    main(SYSTEM, Sizes(), dataclasses.replace(SHORT, drawn_K=1000.0), title=__doc__.splitlines()[0])
