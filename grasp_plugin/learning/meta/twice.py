"""Can a surrogate be differentiated twice? Found out by doing it.

Second-order MAML differentiates the gradient. A surrogate whose backward leaves no graph, or a
wrong one, would turn it into the first-order method without a word.

References:
    specs/meta-learning.md 6 (which surrogates of snnTorch 1.0.0 and Norse 1.1.0 pass), M1, M5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from grasp_plugin.errors import Refused

Function = Callable[[Tensor], Tensor]
REMEDY = (
    "Use one that is, such as snntorch.surrogate.fast_sigmoid or atan, Norse's 'super', or "
    "learning.meta.spike(FastSigmoid(10.0)); or order=1"
)
_STEP, _CLOSE = 1e-6, 1e-6


def probes() -> Tensor:
    """Points of [-2, 2] off 0, and off the round numbers where surrogates have their kinks, in
    float64 (96,)."""
    side = torch.linspace(0.0203, 1.9871, 48, dtype=torch.float64)
    return torch.cat([-side.flip(0), side])


def assert_twice_differentiable(function: Function, name: str = "surrogate") -> None:
    """Refuse a spike function whose second derivative autograd does not have.

    g(u), the backward of `function`, is compared at `probes()` with itself: autograd's g'(u) with
    (g(u + h) - g(u - h)) / 2h, h = 1e-6, to 1e-6 of max(1, |g'|).

    Args:
        function: elementwise, tensor to tensor; float64 is passed. name: for the message.

    Raises:
        Refused: the backward has no graph (snnTorch's triangular, straight_through_estimator), is
            random, or its own derivative is another.
    """
    u = probes().requires_grad_()
    g = _backward(function, u, name)
    if not torch.equal(g.detach(), _backward(function, u, name).detach()):
        raise _refused(name, "one that is random")
    if not g.requires_grad:
        raise _refused(name, "one whose backward is a constant to autograd, without a graph")
    try:
        (second,) = torch.autograd.grad(g.sum(), u)
    except RuntimeError as error:
        raise _refused(name, f"one whose backward fails: {error}") from error
    high, low = (
        _backward(function, (u.detach() + s * _STEP).requires_grad_(), name) for s in (1, -1)
    )
    numeric = ((high - low) / (2 * _STEP)).detach()
    worst = float(((second - numeric).abs() / second.abs().clamp(min=1)).max())
    if not worst <= _CLOSE:
        raise _refused(name, f"one whose second derivative is off by {worst:.3g}")


def _backward(function: Function, u: Tensor, name: str) -> Tensor:
    try:
        (g,) = torch.autograd.grad(function(u).sum(), u, create_graph=True)
    except RuntimeError as error:
        raise _refused(name, f"one that fails: {error}") from error
    return g


def _refused(name: str, got: str) -> Refused:
    wanted = f"expected a surrogate that can be differentiated twice, got {got}"
    return Refused(name, f"{wanted}, which would drop the second-order term", REMEDY)


def spike_functions(module: nn.Module) -> dict[str, Function]:
    """The functions held by a module and its children that step from 0 to 1 at 0, by path."""
    found = {}
    for path, child in module.named_modules():
        for key, value in vars(child).items():
            if callable(value) and not isinstance(value, (nn.Module, type)) and _steps(value):
                found[f"{path}.{key}" if path else key] = value
    return found


def _steps(function: Any) -> bool:
    u = probes()
    try:
        with torch.no_grad():
            out = function(u)
    except Exception:  # a callable with another purpose
        return False
    return isinstance(out, Tensor) and out.shape == u.shape and bool(((out > 0) == (u > 0)).all())


def check_model(
    run: Function, module: nn.Module, x: Tensor, surrogates: Iterable[Function] = ()
) -> None:
    """Refuse a model for second order unless all its autograd Functions are known to allow it.

    Tests the spike functions that the module holds, and those given; then every custom
    `autograd.Function` that took part in `run(x)` must be one of the tested.

    Args:
        run: input to outputs, of the module; x: its input.
        surrogates: spike functions that the module does not hold as such, e.g. Norse's
            `lambda x: norse.torch.functional.threshold.threshold(x, "super", 100.0)`.

    Raises:
        Refused: a surrogate fails the test, or a custom Function was not tested.
    """
    named = spike_functions(module) | {f"surrogates[{i}]": f for i, f in enumerate(surrogates)}
    tested: set[Any] = set()
    for name, function in named.items():
        assert_twice_differentiable(function, name)
        tested |= set(_custom(function(probes().requires_grad_())))
    with torch.enable_grad():
        unknown = set(_custom(run(x))) - tested
    if unknown:
        names = ", ".join(sorted(c.__name__ for c in unknown))
        raise Refused(
            type(module).__name__, f"expected only autograd Functions that were tested to be twice "
            f"differentiable, got {names}", "Pass the spike function in surrogates=, or order=1",
        )  # fmt: skip


def _custom(out: Tensor) -> Iterable[Any]:
    """The autograd.Function classes in the graph of a tensor."""
    seen, stack = set(), [out.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "_forward_cls"):
            yield node._forward_cls
        stack += [following for following, _ in node.next_functions]
