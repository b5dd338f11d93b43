"""Leaky neurons with every reset rule, membrane read-outs, bias sources and delay lines."""
