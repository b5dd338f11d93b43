"""A whole `Network` as one hierarchical Process."""
