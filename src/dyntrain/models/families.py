"""Families by name: dyntrain's own networks, and those that installed packages register as entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from dyntrain.errors import UserError
from dyntrain.models.egnn import EGNN
from dyntrain.models.family import FamilyModel
from dyntrain.models.native import FileContents
from dyntrain.models.paper_egnn import PaperEGNN

MODELS: dict[str, type[FamilyModel]] = {"egnn": EGNN, "paper_egnn": PaperEGNN}
"""dyntrain's own networks by the name they have in configurations and model files."""

GROUP = "dyntrain.models"
"""Entry points of this group name subclasses of ``FamilyModel``."""


def registered() -> dict[str, EntryPoint]:
    """Entry points of installed packages by the name of the family; loading one imports its package."""
    return {point.name: point for point in entry_points(group=GROUP)}


def family(name: str) -> type[FamilyModel]:
    """The class of a family.

    Raises:
        UserError: there is no such family, or its package is missing or too old.
    """
    if name in MODELS:
        return MODELS[name]
    points = registered()
    if name not in points:
        known = ", ".join([*MODELS, *sorted(points)])
        raise UserError(f"there is no network {name!r}; choose one of {known}")
    try:
        found = points[name].load()
    except ImportError as error:
        if (error.name or "").startswith("dyntrain"):
            raise  # a fault of ours, or an entry point of another dyntrain
        raise UserError(_missing(points[name], error)) from error
    if not (isinstance(found, type) and issubclass(found, FamilyModel)):
        raise UserError(f"the entry point {points[name].value} of {GROUP} names no FamilyModel")
    return found


def _missing(point: EntryPoint, error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError):
        why = f"a package that is not installed ({error.name})"
    else:
        why = f"other versions of its packages ({error})"
    if point.value.startswith("dyntrain.adapters."):
        return f'the network {point.name} needs {why}: pip install "dyntrain[{point.name}]"'
    return f"the network {point.name} ({point.value}) needs {why}"


def installed_families() -> dict[str, type[FamilyModel]]:
    """Registered families whose packages are there; imports them all, which takes seconds."""
    found = {}
    for name in registered():
        try:
            found[name] = family(name)
        except UserError:
            continue  # not installed: whoever asks for it by name is told
    return found


def family_of(contents: FileContents) -> type[FamilyModel]:
    """The family whose program wrote a file.

    Raises:
        UserError: none recognises it; a family that the file names but is not installed is told.
    """
    points = registered()
    # What the file names comes first, so that usually one package alone is imported.
    for name in sorted(points, key=lambda name: name not in contents.packages):
        if name in contents.packages:
            named = family(name)
        else:
            try:
                named = family(name)
            except UserError:
                continue
        if named.recognises(contents):
            return named
    raise UserError(_unrecognised(contents.path))


def pretrained_family(name: str) -> type[FamilyModel]:
    """The family whose package ships the model of this name.

    Raises:
        UserError: no installed one does.
    """
    for prefix in registered():
        # Asked first, so that usually one package alone is imported; if it is missing, it says so.
        if name.lower().startswith(prefix) and name in (named := family(prefix)).pretrained_names():
            return named
    installed = installed_families()
    for found in installed.values():
        if name in found.pretrained_names():
            return found
    names = [name for found in installed.values() for name in found.pretrained_names()]
    ships = f"the installed ones ship {', '.join(names)}" if names else "no installed one ships any"
    raise UserError(
        f"there is no model file {name}, nor does an installed package ship a pretrained model of that "
        f"name ({ships})"
    )


def _unrecognised(path: Path) -> str:
    installed = installed_families()
    sentence = f"{path} is not a dyntrain model file, or it is damaged"
    if installed:
        sentence += f"; nor does {', '.join(installed)} recognise it"
    if missing := [f"dyntrain[{name}]" for name in registered() if name not in installed]:
        sentence += f"; not installed, so not tried: {', '.join(missing)}"
    return sentence
