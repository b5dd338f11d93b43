"""Online rules in torch: a trainer, an optimizer, and OTTT inside a module of the user's own."""
