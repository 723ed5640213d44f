"""Our client answers i-PI's server, which then follows ASE step by step; and ASE's own server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.socketio import SocketIOCalculator
from engines import ARGON, DT_FS, apart, argon, run_ase

from dyntrain.deploy.ipi import serve_forces
from dyntrain.errors import UserError

INPUT = """
<simulation verbosity='quiet'>
  <output prefix='run'>
    <properties filename='energies' stride='1'> [ step, potential{{electronvolt}} ] </properties>
    <trajectory filename='positions' stride='1' cell_units='angstrom'> positions{{angstrom}} </trajectory>
  </output>
  <total_steps>{n_steps}</total_steps>
  <ffsocket mode='unix' name='driver' pbc='false'> <address>{address}</address> </ffsocket>
  <system>
    <initialize nbeads='1'>
      <file mode='xyz'> start.xyz </file>
    </initialize>
    <forces> <force forcefield='driver'/> </forces>
    <motion mode='dynamics'>
      <dynamics mode='nve'> <timestep units='femtosecond'> {dt} </timestep> </dynamics>
    </motion>
    <ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>
  </system>
</simulation>
"""


def test_ipi_follows_ase_step_by_step(tmp_path: Path) -> None:
    """From rest, to the digits of i-PI's files."""
    pytest.importorskip("ipi", reason="needs `pip install ipi`")
    n_steps, address = 40, f"dyntrain-{os.getpid()}"
    (tmp_path / "input.xml").write_text(INPUT.format(n_steps=n_steps, address=address, dt=DT_FS))
    write_start(tmp_path / "start.xyz")
    script = Path(sys.executable).with_name("i-pi")
    with subprocess.Popen(
        [sys.executable, script, "input.xml"], cwd=tmp_path, stdout=subprocess.PIPE
    ) as server:
        try:
            answer_when_ready(address)
            server.wait(30)
        finally:
            server.kill()
    energies = np.loadtxt(tmp_path / "run.energies")[:, 1]
    frames = (tmp_path / "run.positions_0.xyz").read_text().split("# CELL")[1:]
    for step, frame in enumerate(run_ase(n_steps, at_rest=True)):
        rows = [line.split()[1:4] for line in frames[step].splitlines()[1:28]]
        assert apart(np.array(rows, dtype=float), frame.positions, frame.cell.array) < 1e-4
        assert energies[step] == pytest.approx(frame.info["energy"], abs=1e-7)
    assert np.ptp(energies) > 1e-4  # it moved


def write_start(file: Path) -> None:
    """The argon as i-PI's xyz, with the lengths and angles of its cell."""
    atoms = argon()
    rows = [f"Ar {x:.12f} {y:.12f} {z:.12f}" for x, y, z in atoms.positions]
    cell = " ".join(f"{number:.12f}" for number in atoms.cell.cellpar())
    file.write_text(
        "\n".join(
            [str(len(atoms)), f"# CELL(abcABC): {cell} positions{{angstrom}} cell{{angstrom}}", *rows, ""]
        )
    )


def answer_when_ready(address: str) -> None:
    """Serve forces as soon as the server listens, until it ends."""
    for _ in range(100):
        if Path(f"/tmp/ipi_{address}").exists():
            break
        time.sleep(0.1)
    serve_forces(ARGON, argon(), unix_socket=address)


def test_it_answers_a_server_as_the_calculator_would() -> None:
    atoms = argon()
    with SocketIOCalculator(unixsocket="dyntrain-test") as server:
        answering = threading.Thread(
            target=serve_forces, args=(ARGON, atoms), kwargs={"unix_socket": "dyntrain-test"}
        )
        answering.start()
        moved = atoms.copy()
        moved.calc = server
        for frame in run_ase(3):
            moved.positions = frame.positions
            np.testing.assert_allclose(moved.get_forces(), frame.info["forces"], rtol=0, atol=1e-10)
            np.testing.assert_allclose(moved.get_stress(), frame.info["stress"], rtol=0, atol=1e-12)
            assert moved.get_potential_energy() == pytest.approx(frame.info["energy"], abs=1e-10)
    answering.join(10)
    assert not answering.is_alive()


# ASE leaves its socket to the garbage collector where no server answers.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_a_server_it_says_so() -> None:
    with pytest.raises(UserError, match="no server listens at the UNIX socket nowhere"):
        serve_forces(ARGON, argon(), unix_socket="nowhere")
