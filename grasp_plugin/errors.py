"""The errors of this package: each names the culprit, what is wrong and the remedy."""

from __future__ import annotations


class GraspError(ValueError):
    """Base of every error that a user can cause.

    Args:
        node: the culprit: a node, population, field or file by name.
        reason: what was expected and what was got.
        remedy: what the user can do about it.
    """

    def __init__(self, node: str, reason: str, remedy: str) -> None:
        super().__init__(f"{node}: {reason}. {remedy}.")
        self.node = node
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[GraspError], tuple[object, ...]]:
        return type(self), (self.node, self.reason, self.remedy)


class Invalid(GraspError):
    """The input is malformed: a broken file, NaN, a wrong shape, a dangling edge."""


class Refused(GraspError):
    """The input is well formed, but the target cannot express it, so it is not approximated."""


class MissingChoice(Refused):
    """NIR leaves a choice open that changes the spikes, and neither caller nor metadata made it.

    Args:
        node: the node that needs the choice.
        choice: the argument's name, e.g. `reset`.
        options: each option and what it would mean.
    """

    def __init__(self, node: str, choice: str, options: dict[str, str]) -> None:
        listed = "; ".join(f"{name!r}: {meaning}" for name, meaning in options.items())
        super().__init__(
            node,
            f"expected a choice of {choice!r}, got none from the caller or the node's metadata",
            f"Pass {choice}=... with one of {listed}",
        )
        self.choice = choice
        self.options = dict(options)

    def __reduce__(self) -> tuple[type[GraspError], tuple[object, ...]]:
        return type(self), (self.node, self.choice, self.options)


class RunFailed(GraspError):
    """A simulation stopped: a model raised, a deadlock was found, or the time limit passed."""
