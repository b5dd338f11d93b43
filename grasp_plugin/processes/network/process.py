"""A `Network` as one Process with named ports, for someone who writes a Lava program."""

from __future__ import annotations

from typing import Any

from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess

from grasp_plugin.errors import Refused
from grasp_plugin.network.network import Network
from grasp_plugin.network.schedule import arrival_steps


class _NetworkProcess(AbstractProcess):
    precision = ""

    def __init__(self, *, network: Network, **kwargs: Any) -> None:
        super().__init__(network=network, **kwargs)
        if network.precision != self.precision:
            raise Refused(
                "network",
                f"expected precision {self.precision!r} for {type(self).__name__}, got "
                f"{network.precision!r}",
                "Use adapters.to_lava(network), which picks the Process",
            )
        self.network = network
        self.arrival = arrival_steps(network)
        self.in_names = {name: f"in_{i}" for i, name in enumerate(network.inputs)}
        self.out_names = {p.name: f"out_{i}" for i, p in enumerate(network.populations)}
        for name, port in self.in_names.items():
            setattr(self, port, InPort(shape=(network.size_of(name),)))
        for name, port in self.out_names.items():
            setattr(self, port, OutPort(shape=(network[name].size,)))

    def input(self, name: str | None = None) -> InPort:
        """The InPort of a NIR Input node, flat (neuron,); the only one by default."""
        return getattr(self, self.in_names[_pick(name, list(self.in_names), "input")])

    def output(self, name: str | None = None) -> OutPort:
        """The OutPort of an Output node or of any population; the only Output by default."""
        name = _pick(name, [*self.network.outputs, *self.out_names], "output", self.network.outputs)
        return getattr(self, self.out_names[self.network.outputs.get(name, name)])

    def latency(self, name: str | None = None) -> int:
        """Lava steps from an input's step t to the same network step t at an output."""
        name = _pick(name, [*self.network.outputs, *self.out_names], "output", self.network.outputs)
        return self.arrival[self.network.outputs.get(name, name)]


def _pick(name: str | None, names: list[str], what: str, default: Any = None) -> str:
    if name is None:
        options = list(default if default is not None else names)
        if len(options) == 1:
            return str(options[0])
        raise Refused(what, f"expected a name, since there are {len(options)}, got none",
                      f"Name one of {', '.join(names)}")  # fmt: skip
    if name not in names:
        raise Refused(what, f"expected one of {', '.join(names)}, got {name!r}", "Check the name")
    return name


class FloatNetwork(_NetworkProcess):
    """A float `Network`; run with `Loihi2SimCfg(select_tag="floating_pt")`.

    Args:
        network: precision "float".

    Raises:
        Refused: a network in Loihi integers, or one that Lava's timing cannot express.
    """

    precision = "float"


class FixedNetwork(_NetworkProcess):
    """A `Network` in Loihi integers; run with `Loihi2SimCfg(select_tag="fixed_pt")`.

    Args:
        network: precision "loihi", from `quantise`.

    Raises:
        Refused: a float network, or one that Lava's timing cannot express.
    """

    precision = "loihi"
