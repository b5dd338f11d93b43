"""`build(network, backend=...)`: one door to every back end."""

from __future__ import annotations

from typing import Any

from grasp_plugin.errors import Refused
from grasp_plugin.network.network import Network
from grasp_plugin.runtime.session import Session

BACKENDS = ("torch", "lava", "fused")


def build(network: Network, backend: str = "lava", **options: Any) -> Session:
    """Make a network ready to run.

    Args:
        network: from `discretise` (float) or `quantise` (Loihi integers; not torch).
        backend: "torch" (float; options device, dtype), "lava" (float and Loihi integers) or
            "fused" (the same two, compiled, without Lava).
        options: passed to the back end's session.

    Returns:
        A `Session`; use it as a context manager.

    Raises:
        Refused: an unknown back end, one that is not installed, or a network it cannot express.
    """
    if backend == "torch":
        from grasp_plugin.backends.torch import TorchSession

        return TorchSession(network, **options)
    if backend == "lava":
        from grasp_plugin.backends.lava import LavaSession

        return LavaSession(network, **options)
    if backend == "fused":
        from grasp_plugin.backends.fused import FusedSession

        return FusedSession(network, **options)
    raise Refused(
        backend, f"expected a back end of {', '.join(BACKENDS)}, got {backend!r}", "Pick one"
    )
