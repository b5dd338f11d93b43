"""Memory traffic of event-driven training: counts from the engine, bytes by class from counts.

Bytes read and written, forward and backward, at b bytes a word:

    class          neuron-stationary (ours)             event-stationary ("scatter")
    arrivals       6 b a walked arrival (time, index, error: 2 + 2 reads, 1 read-modify-write)
    state          0                                    12 b a walked arrival, 8 b an own spike
    log            8 b an own spike: (t, id, I-, a-) written, read
    synapses       4 b a walked arrival: w read twice, dL/dw read and written

Time-stepped training with back-propagation through time moves 12 b a neuron and step for its state,
its trace and its adjoint, whatever happens in the step (`dense_bytes`). The ratio of the two is a
property of the time step and of how sparse the input is, not of the method.

The counts are measured; the bytes are a model of a machine without caches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from grasp_plugin.errors import Invalid


@dataclass(frozen=True)
class Traffic:
    """Counts of one or more passes; they add.

    Args:
        arrivals: (neuron, arrival) pairs walked forwards; solves: roots sought.
        spikes: own spikes logged; arrivals_back: pairs walked backwards.
        swept: (sample, neuron) pairs that had an error to send back.
        clamped: spikes whose slope was raised to the guard's minimum.
    """

    arrivals: int = 0
    solves: int = 0
    spikes: int = 0
    arrivals_back: int = 0
    swept: int = 0
    clamped: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        names = [f.name for f in fields(self)]
        return Traffic(**{k: getattr(self, k) + getattr(other, k) for k in names})

    def bytes(self, *, schedule: str = "neuron", word_bytes: int = 4) -> dict[str, int]:
        """Bytes by class. schedule: "neuron" or "scatter".

        Raises:
            Invalid: another schedule.
        """
        if schedule not in ("neuron", "scatter"):
            raise Invalid(
                "schedule", f'expected "neuron" or "scatter", got {schedule!r}', "Choose one"
            )
        forward, back, scatter = self.arrivals, self.arrivals_back, schedule == "scatter"
        words = {
            "arrivals": 0 if scatter else 2 * forward + 4 * back,
            "state": 6 * (forward + back) + 8 * self.spikes if scatter else 0,
            "log": 8 * self.spikes,
            "synapses": forward + 3 * back,
        }
        return {k: word_bytes * n for k, n in words.items()}


def dense_bytes(
    neurons: int, steps: int, samples: int, synaptic_events: int, *, word_bytes: int = 4
) -> dict[str, int]:
    """The same classes for time-stepped BPTT whose synapses are read at spikes only.

    Args:
        neurons: of the layer; steps: T / dt; synaptic_events: spikes times fan-out, all samples.
    """
    words = {
        "arrivals": 0,
        "state": 12 * neurons * steps * samples,
        "log": 0,
        "synapses": 3 * synaptic_events,
    }
    return {k: word_bytes * n for k, n in words.items()}
