"""Allegro models (``nequip-allegro``; Musaelian et al., Nat. Commun. 14, 579 (2023)) as potentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from allegro.model.allegro_models import AllegroModel as build_allegro
from allegro.model.allegro_models import FullAllegroModel as build_full_allegro

from dyntrain.adapters.base import AdapterModel, require_version
from dyntrain.adapters.nequip import NequIPFramework, is_of_framework, mentions_allegro

if TYPE_CHECKING:
    from dyntrain.models.native import FileContents

require_version("nequip-allegro", "0.8")


class AllegroModel(NequIPFramework):
    """Allegro's module without its force and stress head.

    Args:
        elements: atomic numbers, in the order of the module's types.
        cutoff: Å; the model sees no farther, however many layers it has.
        num_layers: Allegro layers.
        l_max: largest degree of the features.
        num_scalar_features, num_tensor_features: multiplicities.
        architecture: any argument of ``allegro.model.AllegroModel``; it goes before the ones above.

    Raises:
        UserError: an entry of ``architecture`` that there is not.
    """

    family: ClassVar[str] = "allegro"
    may_be_zero = frozenset({"l_max"})
    builders: ClassVar = {"AllegroModel": build_allegro, "FullAllegroModel": build_full_allegro}
    settings: ClassVar = ("num_layers", "l_max", "num_scalar_features", "num_tensor_features")

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 5.0,
        num_layers: int = 2,
        l_max: int = 1,
        num_scalar_features: int = 64,
        num_tensor_features: int = 16,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        AdapterModel.__init__(self)
        settings = {
            "num_layers": num_layers,
            "l_max": l_max,
            "num_scalar_features": num_scalar_features,
            "num_tensor_features": num_tensor_features,
        }
        embedding = {"radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed"}}
        self._set_up(elements, cutoff, settings, embedding | dict(architecture or {}))

    @classmethod
    def recognises(cls, contents: FileContents) -> bool:
        return is_of_framework(contents) and mentions_allegro(contents)
