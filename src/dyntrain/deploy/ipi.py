"""A client of i-PI (and of any server that speaks its protocol), over a UNIX or internet socket."""

from __future__ import annotations

from pathlib import Path

from ase import Atoms
from ase.calculators.socketio import SocketClient

from dyntrain.calculator import Calculator
from dyntrain.errors import UserError
from dyntrain.potential import Potential


def serve_forces(
    model: Potential | Path | str,
    atoms: Atoms,
    *,
    unix_socket: str | None = None,
    host: str = "localhost",
    port: int = 31415,
    device: str | None = None,
) -> None:
    """Answer a server's positions with a model's energies, forces and (all directions periodic) virials.

    Returns when the server ends the connection.

    Args:
        model: a model file, or a potential.
        atoms: elements and pbc in the server's order; its positions are not used.
        unix_socket: the ``address`` of i-PI's ``<ffsocket mode='unix'>``; None: the internet socket.

    Raises:
        UserError: no server listens there.
    """
    atoms = atoms.copy()
    atoms.calc = Calculator(model, device)
    where = f"the UNIX socket {unix_socket}" if unix_socket is not None else f"{host}:{port}"
    try:
        client = SocketClient(host=host, port=port, unixsocket=unix_socket)
    except OSError as error:
        raise UserError(f"no server listens at {where} ({error.strerror}): start i-PI first") from error
    client.run(atoms, use_stress=bool(atoms.pbc.all()))
