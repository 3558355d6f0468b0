"""Every claim about speed, as a command: `eat bench`."""
