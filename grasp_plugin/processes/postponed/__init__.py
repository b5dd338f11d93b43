"""Synapses that learn, whose updates wait until their input spikes."""
