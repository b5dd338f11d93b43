"""Learning signals: from spikes and targets to the third factor of a population."""
