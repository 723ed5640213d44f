"""The process of one AIMD run: ``python -m dyntrain.reference.worker RECORD RUN`` writes its pieces.

Prints one JSON object a piece, ``{"step", "energy_eV", "temperature_K"}``, or ``{"error"}`` and exits with 2.
A process of its own, because tblite's sums depend on the number of OpenMP threads, which is fixed when it is
loaded: one thread gives the same digits everywhere, and is the fastest for small molecules.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dyntrain.errors import UserError
from dyntrain.reference.kinetics import temperature
from dyntrain.reference.record import Record
from dyntrain.reference.runs import atoms_during, make_pieces
from dyntrain.reference.systems import arrival


def main() -> None:
    """Make the pieces of a run that are missing."""
    # An interrupt from the keyboard is for the process that started us, which then ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    say = _messages()
    record, run = Record.read(Path(sys.argv[1])), int(sys.argv[2])
    folder = record.pieces_folder(run)
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a process whose parent has just been killed
        settings = record.settings
        for task, piece in make_pieces(settings, record.atoms, run, folder):
            rigid_motion = (
                task.kind != "record" or settings.ensemble == "langevin" or bool(arrival(settings.system))
            )
            atoms = atoms_during(task, settings, record.atoms)
            kelvin = temperature(atoms, piece.momenta[-1], rigid_motion=rigid_motion)
            say(step=task.last, energy_eV=float(piece.energies[-1]), temperature_K=kelvin)
    except BrokenPipeError:
        os._exit(1)  # whoever started us is gone; nothing on disk is lost, and nobody is there to be told
    except (UserError, OSError) as error:
        say(error=str(error))
        sys.exit(2)


def _end_with_parent() -> None:
    """Where the process that started us is killed, nobody else would stop us."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _messages() -> Callable[..., None]:
    """A channel of our own: calculators print to stdout, which from here on is stderr."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    return say


if __name__ == "__main__":
    main()
