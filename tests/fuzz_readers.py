"""Fuzz: damaged files of every format are refused in a sentence, told of, or read as if undamaged.

    python tests/fuzz_readers.py [--n 2000] [--seed 0] [--format cp2k]

prints one line a format and, for anything else, the seed and format that repeat it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from array_writers import WRITERS
from dyntrain.data.diagnose import diagnose
from dyntrain.data.raw import RawRun
from dyntrain.data.readers import read_trajectory
from dyntrain.data.run_report import RunReport
from dyntrain.data.store import write_store
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from format_writers import write_cp2k, write_xdatcar
from made_runs import morse_run, morse_stress, morse_trajectory

RUN = morse_run(40, dt_fs=0.5)
RUN.stress = morse_stress(RUN)
# These files state no dt, so that the user must.
WITHOUT_TIME = ("ml_ab", "md17", "deepmd")
_TEXT = re.compile(rb"-?\d+\.\d+(?:[eE][-+]?\d+)?")
_ODD = [b"nan", b"inf", b"-inf", b"1e300", b"-1e30", b"9" * 40, b"0.0", b"abc", b"1.2.3", b"********", b""]


def _store(folder: Path, run: RawRun) -> Path:
    write_store([morse_trajectory(40, dt_fs=0.5).replace(stress=run.stress)], folder / "store.h5")
    return folder / "store.h5"


def _xdatcar(folder: Path, run: RawRun) -> Path:
    WRITERS["outcar"](folder, run)
    return write_xdatcar(folder, run)


def _cp2k_real(folder: Path, name: str) -> Path:
    """A real CP2K run: of water, with its log, or of argon, with its stress."""
    shutil.copytree(Path(__file__).parent / "data" / f"cp2k_{name}", folder, dirs_exist_ok=True)
    return folder / f"{name}-pos-1.xyz"


FORMATS: dict[str, Callable[[Path, RawRun], Path]] = {
    **WRITERS,
    "xdatcar": _xdatcar,
    "store": _store,
    "cp2k_real": lambda folder, _: _cp2k_real(folder, "water"),
    "cp2k_stress": lambda folder, _: _cp2k_real(folder, "argon"),
    "cp2k_comments": lambda folder, run: write_cp2k(folder, run, ener=False),
}


def flip(data: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for place in random.integers(0, max(len(data), 1), random.integers(1, 6)):
        damaged[place] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def truncate(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(len(data))]


def shuffle(data: bytes, random: np.random.Generator) -> bytes:
    """Some lines (of binary files: some blocks) in another order."""
    lines = data.splitlines(keepends=True)
    if len(lines) < 4:
        lines = [data[k : k + 64] for k in range(0, len(data), 64)]
    first = int(random.integers(len(lines)))
    last = min(len(lines), first + int(random.integers(2, 40)))
    lines[first:last] = [lines[first:last][k] for k in random.permutation(last - first)]
    return b"".join(lines)


def odd_number(data: bytes, random: np.random.Generator) -> bytes:
    """One number exchanged for NaN, infinity, a huge one or no number (of binary files: eight odd bytes)."""
    numbers = list(_TEXT.finditer(data))
    if not numbers or b"\x00" in data[:200]:
        place = int(random.integers(max(len(data) - 8, 1)))
        value = np.array([np.nan, np.inf, 1e300, -1e15, 0.0])[random.integers(5)]
        return data[:place] + np.float64(value).tobytes() + data[place + 8 :]
    chosen = numbers[int(random.integers(len(numbers)))]
    return data[: chosen.start()] + _ODD[int(random.integers(len(_ODD)))] + data[chosen.end() :]


def cut_out(data: bytes, random: np.random.Generator) -> bytes:
    """A piece in the middle is missing: other shapes, other counts."""
    first = int(random.integers(len(data)))
    return data[:first] + data[first + int(random.integers(1, 2000)) :]


def repeat(data: bytes, random: np.random.Generator) -> bytes:
    first = int(random.integers(len(data)))
    piece = data[first : first + int(random.integers(1, 3000))]
    return data[: first + len(piece)] + piece + data[first + len(piece) :]


OUTCOMES = ("refused", "told", "equal", "part", "unseen")
"""Refused in a sentence; read with a finding or note; read as if undamaged; fewer frames, all undamaged;
less than two hundredths of a number's usual size, which the digits of the file cannot contradict."""
DAMAGES = (flip, truncate, shuffle, odd_number, cut_out, repeat)


_COMPARED = (
    "positions",
    "velocities",
    "forces",
    "energies",
    "masses",
    "dt",
    "cell",
    "pbc",
    "atomic_numbers",
    "breaks",
    "stress",
)


def differences(found: Trajectory, clean: Trajectory) -> list[str]:
    """What of a run that training uses differs by more than 1e-6."""
    return [name for name in _COMPARED if not _same(getattr(found, name), getattr(clean, name))]


def _same(x: Any, y: Any) -> bool:
    if x is None or y is None:
        return x is y
    return np.shape(x) == np.shape(y) and np.allclose(x, y, rtol=1e-6, atol=1e-6)


def is_part(found: Trajectory, clean: Trajectory) -> bool:
    """Whether all frames are consecutive ones of the undamaged run, of which an end was cleanly cut off."""
    for first in range(clean.n_frames - found.n_frames + 1):
        part = clean.slice(first, first + found.n_frames)
        changed = set(differences(found, part))
        # Rebuilt velocities have one neighbour less at the new end.
        if not changed - ({"velocities"} if found.velocities_origin == "rebuilt" else set()):
            return True
    return False


def change_of(found: Trajectory, clean: Trajectory) -> float:
    """The largest change of a number over the usual size (energies: fluctuation) of such numbers."""
    largest = 0.0
    for name in differences(found, clean):
        x, y = np.asarray(getattr(found, name)), np.asarray(getattr(clean, name))
        if x.shape != y.shape or y.dtype.kind != "f":
            return np.inf
        size = np.ptp(y, axis=0).max() if name == "energies" else np.sqrt((y**2).mean())
        largest = max(largest, float(np.abs(x - y).max() / size))
    return largest


def outcome(name: str, seed: int, cleans: dict[str, tuple[Path, Trajectory, set[str]]]) -> str:
    """What happens with one damaged input: one of OUTCOMES, or what is wrong about it."""
    random = np.random.default_rng([seed, sorted(FORMATS).index(name)])
    source, clean, usual = cleans[name]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(source.parent, folder, dirs_exist_ok=True)
        file = Path(folder) / source.name
        victims = sorted(f for f in Path(folder).rglob("*") if f.is_file())
        victim = victims[int(random.integers(len(victims)))]
        damage = DAMAGES[int(random.integers(len(DAMAGES)))]
        victim.write_bytes(damage(victim.read_bytes(), random))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = read_trajectory(file, 0.5 if name in WITHOUT_TIME else None)
                report = diagnose(found)
        except UserError as refusal:
            said = str(refusal)
            return "refused" if "\n" not in said and len(said) < 800 else f"refused at length: {said!r}"
        except Exception:
            return f"{damage.__name__} of {victim.name}: traceback\n{traceback.format_exc()}"
        if not (changed := differences(found, clean)):
            return "equal"
        if said_of(report) - usual:
            return "told"
        if is_part(found, clean):
            return "part"
        if change_of(found, clean) < 2e-2:
            return "unseen"
        return f"{damage.__name__} of {victim.name}: {', '.join(changed)} changed without a word"


def said_of(report: RunReport) -> set[str]:
    """The kinds of findings and the notes, these without the path, which differs from file to file."""
    notes = {re.sub(r"/\S*", "", note) for note in report.notes}
    return notes | {finding.code for finding in report.findings}


def cleans_in(folder: Path) -> dict[str, tuple[Path, Trajectory, set[str]]]:
    found = {}
    for name, write in FORMATS.items():
        (folder / name / "run").mkdir(parents=True)
        file = write(folder / name / "run", RUN)
        run = read_trajectory(file, 0.5 if name in WITHOUT_TIME else None)
        found[name] = (file, run, said_of(diagnose(run)))
    return found


def fuzz(n: int, seed: int, only: str | None = None) -> tuple[dict[str, Counter[str]], list[str]]:
    """n damaged inputs over all formats: outcomes by format, and what went wrong, each with its seed."""
    counts = {name: Counter[str]() for name in sorted(FORMATS) if only in (None, name)}
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        cleans = cleans_in(Path(folder))
        for number in range(n):
            name = list(counts)[number % len(counts)]
            result = outcome(name, seed + number, cleans)
            counts[name][result if result in OUTCOMES else "wrong"] += 1
            if result not in OUTCOMES:
                wrong.append(f"--format {name} --seed {seed + number} --n 1: {result}")
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=sorted(FORMATS))
    arguments = parser.parse_args()
    counts, wrong = fuzz(arguments.n, arguments.seed, arguments.format)
    print(f"{'format':14s} " + " ".join(f"{key:>8s}" for key in (*OUTCOMES, "wrong")))
    for name, found in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        print(f"{name:14s} " + " ".join(f"{found[key]:8d}" for key in (*OUTCOMES, "wrong")))
    print("\n".join(wrong))
    return len(wrong) > 0


if __name__ == "__main__":
    raise SystemExit(main())
