"""Array formats: npz of MD17, DeePMD folders and H5MD, their units and what is never loaded."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from array_writers import write_deepmd, write_h5md, write_md17
from dyntrain.cli import main
from dyntrain.data.keys import KeyMap
from dyntrain.data.readers import expand_paths, read_trajectory
from dyntrain.data.store import write_store
from dyntrain.errors import UserError
from made_runs import morse_run, morse_trajectory

RUN = morse_run(20, dt_fs=0.5)


def test_md17_units_come_from_the_file_or_the_user(tmp_path: Path) -> None:
    file = write_md17(tmp_path, RUN, e_unit=None, r_unit=None)
    with pytest.raises(UserError, match=r"does not say its units \(no e_unit\); state them as `keys: .units"):
        read_trajectory(file)
    keys = KeyMap.from_mapping({"units": {"energy": "kcal/mol"}})
    np.testing.assert_allclose(read_trajectory(file, keys=keys).forces, RUN.forces, rtol=1e-12)
    assert read_trajectory(file, keys=keys).dt_origin == "inferred"
    eight = write_md17(tmp_path, RUN, energies=RUN.energies)
    with pytest.raises(UserError, match=r"has E, energies: say with `keys: {energy: …}` which is meant"):
        read_trajectory(eight)
    with pytest.raises(UserError, match="unknown unit 'parsec' of the energy"):
        read_trajectory(write_md17(tmp_path, RUN, e_unit="parsec"))
    with pytest.raises(UserError, match=r"has no forces \(F, forces, force\), only"):
        read_trajectory(write_md17(tmp_path, RUN, F=None))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    file = tmp_path / "evil.npz"
    np.savez(file, R=np.array([object()], dtype=object), E=RUN.energies)
    with pytest.raises(UserError, match="has no positions"):
        read_trajectory(file)
    system = write_deepmd(tmp_path, RUN)
    np.save(system / "set.000" / "energy.npy", np.array([{}], dtype=object))
    with pytest.raises(UserError, match="holds pickled Python objects, which are never loaded"):
        read_trajectory(system)


def test_deepmd_folders_by_any_name(tmp_path: Path) -> None:
    system = write_deepmd(tmp_path, RUN, velocities=True)
    assert expand_paths([tmp_path]) == expand_paths([system]) == [system]
    for path in (system, system / "type.raw"):
        assert read_trajectory(path).velocities_origin == "read"
    (system / "nopbc").touch()
    assert not read_trajectory(system).pbc.any()
    (system / "type_map.raw").unlink()
    with pytest.raises(UserError, match=r"type_map.raw is missing beside it"):
        read_trajectory(system)


def test_h5md_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    file = write_h5md(tmp_path, RUN)
    with h5py.File(file, "a") as h5:
        del h5["particles/all/force"]
        h5["particles/all/force"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(
        UserError, match="/particles/all/force is a link to another file, which is not followed"
    ):
        read_trajectory(file)


def test_h5md_without_units_is_refused(tmp_path: Path) -> None:
    file = write_h5md(tmp_path, RUN)
    with h5py.File(file, "a") as h5:
        del h5["particles/all/force/value"].attrs["unit"]
    with pytest.raises(UserError, match=r"force/value has no unit; state it as `keys: .units: .forces"):
        read_trajectory(file)
    keys = KeyMap.from_mapping({"units": {"forces": "kJ/mol/nm"}})
    np.testing.assert_allclose(read_trajectory(file, keys=keys).forces, RUN.forces, rtol=1e-12)


def test_check_takes_keys_and_tells_of_each_run_of_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store([morse_trajectory(20), morse_trajectory(20, seed=1)], tmp_path / "runs.h5")
    file = write_md17(tmp_path, RUN, e_unit=None)
    (tmp_path / "keys.yaml").write_text("units: {energy: kcal/mol}\n")
    arguments = [
        file,
        tmp_path / "runs.h5",
        "--keys",
        tmp_path / "keys.yaml",
        "--json",
        tmp_path / "found.json",
    ]
    monkeypatch.setattr("sys.argv", ["dyntrain", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    reports = json.loads((tmp_path / "found.json").read_text())
    names = [file, tmp_path / "runs.h5", f"{tmp_path / 'runs.h5'}#run_1"]
    assert [report["file"] for report in reports] == [str(name) for name in names]
