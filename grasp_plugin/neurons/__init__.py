"""Pure neuron steps: one source of equations for NumPy, torch and Lava."""
