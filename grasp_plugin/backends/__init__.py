"""Back ends: a `Network` made to run."""
