"""Synapses that learn: the weights of one projection and the plan that writes them."""
