"""What the repository claims, each by a command that prints it."""
