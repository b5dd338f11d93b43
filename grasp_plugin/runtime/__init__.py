"""How a network is run: sessions, recordings, Lava in one OS process."""
