"""How anything learns: one loop, one optimizer, one kind of checkpoint. Knows no method."""
