"""Answer i-PI with a trained model: start `i-pi input.xml` first, then this.

    pip install ipi
    python examples/engines/ipi_client.py MODEL START ADDRESS

In input.xml: `<ffsocket mode='unix' pbc='false'> <address>ADDRESS</address> </ffsocket>`; START has the atoms
in i-PI's order.
"""

from __future__ import annotations

import sys

import ase.io

from dyntrain.deploy.ipi import serve_forces


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model, start, address = sys.argv[1:]
    serve_forces(model, ase.io.read(start), unix_socket=address)


if __name__ == "__main__":
    main()
