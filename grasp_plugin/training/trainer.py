"""`OnlineTrainer`: epochs of online learning in torch, batched, on CPU or GPU.

One step of a batch is one step of `OnlineTorch`: no graph is kept, so memory does not grow with the
length of a sequence. What becomes of the deltas of step t, with D[t] that of one parameter W:

    optimizer   update       when              what
    None        "step"       every step        W += D[t]
    None        "sequence"   end of sequence   W += sum_t D[t]
    given       "step"       every step        W.grad = -D[t],        optimizer.step()
    given       "sequence"   end of sequence   W.grad = -sum_t D[t],  optimizer.step()   (OTTT_A)

With an optimizer, build the rules with learning_rate = 1: the optimizer's multiplies it. A step
(or sequence) in which every delta is exactly zero, such as one without a teaching event or in a
burn-in, is no update: the optimizer does not step, so that its momentum moves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grasp_plugin.backends.learning_torch import OnlineTorch
from grasp_plugin.errors import Invalid
from grasp_plugin.learning.losses import MSE, CrossEntropy, Loss
from grasp_plugin.learning.signals import Backpropagation, OutputError, RandomReadout
from grasp_plugin.learning.spec import Learning
from grasp_plugin.network.network import Network
from grasp_plugin.training.trainer_callbacks import Callback as Callback
from grasp_plugin.training.trainer_callbacks import Record as Record
from grasp_plugin.training.trainer_callbacks import TensorBoard as TensorBoard
from grasp_plugin.training.trainer_data import Batch, Sequences, as_sequences, batches_of
from grasp_plugin.training.trainer_file import on_device, read_state, write_state
from grasp_plugin.training.write_back import frozen_in, network_of, write_back

UPDATES = ("step", "sequence")
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class OnlineTrainer:
    """Trains a network with online rules.

    Args:
        model: a float `Network`, or a snnTorch or Norse module, which is converted and not changed
            (see `into`). Layers of it with requires_grad = False are frozen: the plans for their
            weights and biases are left out, and `into` does not write them.
        learning: plans and signals, or a function that makes them from the network, such as
            `lambda network: decolle_for(network, 10, 1.0)`.
        optimizer: parameters -> torch optimizer, e.g. `lambda p: torch.optim.Adam(p, lr=1e-3)`;
            None: the deltas are added as they are.
        update: "step" or "sequence", as in the module's table.
        device, dtype: torch's.
        seed: of `generator`, from which this class never draws: give it to a DataLoader that
            shuffles, and a run that was resumed sees the batches of one that was not.
        callbacks: called after every epoch.
        sample, dt: for a module, the adapter's: the input of one step (batch, ...), and seconds a
            step (None: the adapter's default).

    Raises:
        Invalid: an unknown `update`; a model, learning or optimizer that is none; everything is
            frozen; as `OnlineLearner`.
        Refused: a module without `sample`, or that the adapter cannot express; as `OnlineLearner`.

    Example:
        >>> trainer = OnlineTrainer(network, lambda n: ottt_for(n, 10, 0.1))  # doctest: +SKIP
        >>> history = trainer.fit(batches, epochs=5)                          # doctest: +SKIP
    """

    def __init__(
        self,
        model: Network | nn.Module,
        learning: Learning | Callable[[Network], Learning],
        *,
        optimizer: MakeOptimizer | None = None,
        update: str = "step",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        sample: Any = None,
        dt: float | None = None,
    ) -> None:
        if update not in UPDATES:
            raise Invalid("update", f"expected one of {', '.join(UPDATES)}, got {update!r}", "Pick")
        if not isinstance(model, (Network, nn.Module)):
            raise Invalid(
                "model", f"expected a Network or a torch module, got {type(model).__name__}",
                "Pass discretise(graph), or the module and sample=...",
            )  # fmt: skip
        network = model if isinstance(model, Network) else network_of(model, sample, dt)
        learning = _learning(learning, network)
        if isinstance(model, nn.Module):
            learning = _without(learning, frozen_in(network, model))
        self.learning, self.update, self.device, self.dtype = learning, update, device, dtype
        self.sample, self.dt, self.callbacks = sample, dt, tuple(callbacks)
        self.online = OnlineTorch(network, learning, device, dtype)
        self.optimizer = None if optimizer is None else _made(optimizer, self.online.plastic)
        self.generator = torch.Generator().manual_seed(seed)
        self.loss = _loss(learning)
        self.epochs = self.updates = 0

    def fit(self, batches: Iterable[Batch], epochs: int, *, progress: bool = False) -> list[Record]:
        """Learn from every batch, `epochs` times; counts go on from an earlier `fit` or `load`.

        Args:
            batches: (spikes, labels) pairs, gone through once an epoch: spikes (time, batch,
                neuron...) or a mapping of input name to such, labels (batch,) of integers.
            progress: show a bar.

        Returns:
            A record for each epoch.

        Raises:
            Invalid: no batches, or an iterator that ends with the first epoch; a wrong shape or
                value; a label out of range; NaN in a trace or an update (names plan and step; the
                weights are those of the last good step).
        """
        from tqdm import tqdm

        history: list[Record] = []
        for _ in range(epochs):
            given = tqdm(batches_of(batches), disable=not progress, leave=False,
                         desc=f"epoch {self.epochs + 1}")  # fmt: skip
            loss, right, samples, before = 0.0, 0, 0, self.updates
            for batch in given:
                sequences = self._sequences(batch)
                mean, predicted = self._learn(sequences)
                loss += mean * len(predicted)
                right += int((predicted == sequences.labels).sum())
                samples += len(predicted)
            if not samples:
                raise Invalid("batches", "expected at least one batch, got none", "Check the data")
            self.epochs += 1
            made = self.updates - before
            history.append(Record(
                epoch=self.epochs, loss=loss / samples, accuracy=right / samples, updates=made
            ))  # fmt: skip
            for callback in self.callbacks:
                callback.epoch(self, history[-1])
        return history

    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Share of samples whose class is right, without learning.

        Raises:
            Invalid: as `fit`.
        """
        right = samples = 0
        for batch in batches:
            sequences = self._sequences(batch)
            right += int((self._run(sequences) == sequences.labels).sum())
            samples += sequences.batch
        if not samples:
            raise Invalid("batches", "expected at least one batch, got none", "Check the data")
        return right / samples

    def predict(self, spikes: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The class with the largest sum of logits over time (batch,), without learning.

        Raises:
            Invalid: a wrong shape or value.
        """
        given = as_sequences(self.online.network, spikes, None, 0, self.device, self.dtype)
        return self._run(given).cpu().numpy()

    def network(self) -> Network:
        """The trained network, for `to_nir`, `quantise` or `build`."""
        weights = {
            name: weight.detach().cpu().numpy().astype(np.float64)
            for name, weight in self.online.plastic.items()
        }
        return self.online.network.with_weights(weights)

    def into(self, module: nn.Module, sample: Any = None) -> None:
        """Write the trained weights and biases into a module like the one given, in place.

        Args:
            sample: as for the constructor, whose is the default.

        Raises:
            Refused: a weight has no single place in the module, or the module would not be the
                trained network (it is then as it was).
        """
        sample = self.sample if sample is None else sample
        write_back(self.network(), tuple(self.online.plastic), module, sample, self.dt)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, random readouts, counters, the optimizer and `generator`, whole or not.

        Raises:
            Invalid: the file cannot be written.
        """
        write_state(path, self._state())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on as the trainer that saved would have, bit for bit.

        Raises:
            Invalid: not a checkpoint, or one of another network, plans or optimizer; nothing is
                changed then.
        """
        found = read_state(path, self._state())
        if self.optimizer is not None:
            self.optimizer.load_state_dict(found["optimizer"])
        with torch.no_grad():
            for name, weight in self.online.parameters.items():
                weight.copy_(found["weights"][name])
        self.online.state["signals"] = on_device(found["signals"], self.device)
        self.generator.set_state(found["generator"])
        self.epochs, self.updates = found["epochs"], found["updates"]

    def _state(self) -> dict[str, Any]:
        kind = None if self.optimizer is None else type(self.optimizer).__name__
        plans = [f"{name}: {plan}" for name, plan in sorted(self.learning.plans.items())]
        signals = [f"{name}: {s}" for name, s in sorted(self.learning.signals.items())]
        return {
            "made by": [f"{self.dtype}, optimizer {kind}, update {self.update}", *plans, *signals],
            "weights": {n: w.detach() for n, w in self.online.parameters.items()},
            "signals": self.online.state["signals"],
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epochs": self.epochs,
            "updates": self.updates,
        }

    def _sequences(self, batch: Batch) -> Sequences:
        try:
            spikes, labels = batch
        except (TypeError, ValueError) as error:
            raise Invalid("batches", f"expected pairs of spikes and labels, got {error}",
                          "Pass (spikes, labels) for each batch") from error  # fmt: skip
        network, classes = self.online.network, self.learning.classes
        return as_sequences(network, spikes, labels, classes, self.device, self.dtype)

    def _learn(self, given: Sequences) -> tuple[float, Tensor]:
        """(mean loss over the steps, predicted (batch,)) of one batch."""
        total: dict[str, Tensor] = {}
        apply = self._change if self.update == "step" else lambda d: _add_up(total, d, self._dense)
        target, mask = given.target(), given.mask()
        loss, logits = target.new_zeros(()), target.new_zeros(target.shape[1:])
        for _, now in self.online.sequence(given.inputs, target, mask, apply):  # type: ignore[arg-type]
            loss, logits = loss + self.loss.value(now, target[0]), logits + now
        if self.update == "sequence":
            self._make(total)
        return float(loss) / given.steps, logits.argmax(1)

    def _dense(self, deltas: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        for name, delta in deltas.items():
            yield name, delta["weight"].dense().reshape(self.online.plastic[name].shape)

    def _change(self, deltas: Mapping[str, Any]) -> None:
        self._make(dict(self._dense(deltas)))

    def _make(self, deltas: Mapping[str, Tensor]) -> None:
        """One update, unless all deltas are zero."""
        if not any(bool(delta.any()) for delta in deltas.values()):
            return
        self.updates += 1
        with torch.no_grad():
            for name, delta in deltas.items():
                if self.optimizer is None:
                    self.online.plastic[name].add_(delta)
                else:
                    self.online.plastic[name].grad = -delta
            if self.optimizer is not None:
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _run(self, given: Sequences) -> Tensor:
        """Predicted classes (batch,), one step after another."""
        module, learner = self.online.module, self.online.learner
        state = module.initial_state(given.batch)
        logits: Any = 0.0
        for t in range(given.steps):
            now = {name: x[t] for name, x in given.inputs.items()}
            output, state, _ = module.step(t, now, state)
            logits = logits + learner.logits(output, self.online.state["signals"])
        return logits.argmax(1)  # type: ignore[no-any-return]


def _learning(given: Any, network: Network) -> Learning:
    learning = given if isinstance(given, Learning) or not callable(given) else given(network)
    if not isinstance(learning, Learning):
        raise Invalid(
            "learning", f"expected a Learning, or a function of the network that makes one, got "
            f"{type(learning).__name__}", "Pass lambda n: ottt_for(n, classes, learning_rate)",
        )  # fmt: skip
    return learning


def _without(learning: Learning, frozen: Collection[str]) -> Learning:
    """The same learning without the plans of frozen projections and biases."""
    kept = {name: plan for name, plan in learning.plans.items() if name not in frozen}
    if learning.plans and not kept:
        raise Invalid(
            "model", "expected a layer that learns, got requires_grad = False in all that have a "
            "plan", "Set requires_grad = True where the module is to learn",
        )  # fmt: skip
    return replace(learning, plans=kept)


def _made(make: MakeOptimizer, plastic: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(make, torch.optim.Optimizer) or not callable(make):
        raise Invalid(
            "optimizer", f"expected a function that makes a torch optimizer of the trainer's own "
            f"parameters, got {type(make).__name__}", "Pass lambda p: torch.optim.Adam(p, lr=1e-3)",
        )  # fmt: skip
    optimizer = make(list(plastic.values()))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise Invalid(
            "optimizer", f"expected a function that makes a torch optimizer, got one that makes "
            f"{type(optimizer).__name__}", "Pass lambda p: torch.optim.Adam(p, lr=1e-3)",
        )  # fmt: skip
    return optimizer


def _loss(learning: Learning) -> Loss:
    """The readout's own loss; of ETLP's output error its square, else cross-entropy."""
    signal = learning.signals.get(learning.readout)
    if isinstance(signal, (RandomReadout, Backpropagation)):
        return signal.loss
    return MSE() if isinstance(signal, OutputError) else CrossEntropy()


def _add_up(total: dict[str, Tensor], deltas: Mapping[str, Any], dense: Any) -> None:
    for name, delta in dense(deltas):
        total[name] = total[name] + delta if name in total else delta
