"""What the user has: the only readers of foreign files."""
