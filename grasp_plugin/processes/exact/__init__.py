"""Exact gradients of spike times beside a running graph: a learner that hears spikes only."""
