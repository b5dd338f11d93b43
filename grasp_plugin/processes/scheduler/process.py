"""One price for the writes of several plastic connections."""

from __future__ import annotations

from typing import Any

from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var

from grasp_plugin.learning.shared_budget import SharedPrice


class BudgetScheduler(AbstractProcess):
    """Moves the price of `learning.shared_budget` by what the holders wrote.

    Per step: sends the price of the first holder's next network step, then receives the reports of
    the network step that the last holder has just learned from, so that no one waits in a circle.

    Ports:
        price_out (1,): log c, -inf before there is one; to `PlasticDense.price_in`.
        taken_in (2 holders,): (writes, least score taken) of every holder, from
            `PlasticDense.taken_out` of each, each in its own slot: Lava adds them up.

    Args:
        price: who shares it, and its gain.
    """

    def __init__(self, *, price: SharedPrice, **kwargs: Any) -> None:
        super().__init__(price=price, **kwargs)
        self.price_out = OutPort(shape=(1,))
        self.taken_in = InPort(shape=(2 * len(price.holders),))
        self.age = Var(shape=(1,), init=0)
