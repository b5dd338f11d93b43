"""HD-LIF neurons: graded spikes, parameters that differ by step, a phase for each layer."""
