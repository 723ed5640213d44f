"""Other engines moved by our potentials: LAMMPS, OpenMM, i-PI; each imports its engine only when called."""
