"""A whole `Network` as one leaf Process."""
