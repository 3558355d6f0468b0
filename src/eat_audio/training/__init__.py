"""How anything learns: one loop, one optimiser, one kind of checkpoint. Knows no method."""
