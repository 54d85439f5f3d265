"""Which layers run as one step: values that only the next layer reads need no memory.

The format knows small layers; a backend runs a convolution, the batch norm and the activation behind it, a shortcut and
the next sign in one pass. Fusing changes no value: each operation is rounded as :mod:`bnn_perception.net.signals`
states.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnn_perception.net.layer import Layer
from bnn_perception.net.model import Model, Place, iter_layers
from bnn_perception.net.signals import Add, Affine, Clip, PRelu, Sign

#: Layers that change a value by itself, and may follow another in its step.
CHAINED = (Affine, PRelu, Clip, Add)
#: Layers of a chain at most: the kernels of GPUs state them in one number of 64 bits.
MAX_CHAIN = 16


@dataclass(frozen=True)
class Fused:
    """Layers that run together.

    Attributes:
        head: the place of the first layer. Where it is one of :data:`CHAINED` or a :class:`.Sign`, it is also the first
            of the chain, or the sign: the step then begins with its first input as it is.
        chain: what changes the values then, in order; at most one of them is an :class:`.Add`.
        addend: name of the layer whose signal that ``Add`` adds; None without one.
        sign: what turns the last value into bits, None where the step gives none.
        signal: name of the layer whose signal the step keeps, that of the last of the chain; None where nothing but
            ``sign`` reads it, or the step has none.
    """

    head: Place
    chain: tuple[Layer, ...]
    addend: str | None
    sign: Sign | None
    signal: str | None

    @property
    def name(self) -> str:
        """Of its first layer."""
        return self.head.layer.name

    @property
    def has_head(self) -> bool:
        """Whether the first layer is more than a change of values or their signs."""
        return not isinstance(self.head.layer, (*CHAINED, Sign))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All of its layers."""
        head = (self.head.layer,) if self.has_head else ()
        return (*head, *self.chain, *(() if self.sign is None else (self.sign,)))


def fuse(model: Model) -> list[Fused]:
    """The steps of a model in an order in which each finds its inputs computed; each layer is in one of them.

    Everything a step reads is a signal that another one keeps, or bits, or the image.
    """
    places = list(iter_layers(model))
    by_name = {place.layer.name: (index, place) for index, place in enumerate(places)}
    taken: set[str] = set()
    steps: list[tuple[int, Fused]] = []
    for place in places:
        if place.layer.name in taken:
            continue
        last, addend = place, _addend(place, None)
        chain: list[Layer] = [place.layer] if isinstance(place.layer, CHAINED) else []
        if place.layer.gives == "signal":
            while len(last.readers) == 1 and isinstance(last.readers[0], CHAINED) and len(chain) < MAX_CHAIN:
                following = by_name[last.readers[0].name][1]
                is_add = isinstance(following.layer, Add)
                if following.layer.name in taken or (
                    is_add and (addend or following.sources[0] is following.sources[1])
                ):
                    break
                addend = addend or _addend(following, last.layer)
                chain.append(following.layer)
                last = following
        sign = place.layer if isinstance(place.layer, Sign) else None
        if sign is None and last.layer.gives == "signal":
            sign = next((r for r in last.readers if isinstance(r, Sign) and r.name not in taken), None)
        keeps = last.layer.gives == "signal" and (
            not last.readers or any(r is not sign for r in last.readers)
        )
        step = Fused(place, tuple(chain), addend, sign, last.layer.name if keeps else None)
        taken.update(layer.name for layer in step.layers)
        steps.append((by_name[last.layer.name][0], step))
    return [step for _, step in sorted(steps, key=lambda pair: pair[0])]


def _addend(place: Place, own: Layer | None) -> str | None:
    """What an ``Add`` adds to the values of layer ``own``, or to its first input where that is None."""
    if not isinstance(place.layer, Add):
        return None
    first, second = place.sources
    other = second if own is None or first is own else first
    assert other is not None  # an Add takes signals, not the image
    return other.name
