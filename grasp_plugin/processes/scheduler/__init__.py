"""Update scheduling over several projections: a price that they share."""
