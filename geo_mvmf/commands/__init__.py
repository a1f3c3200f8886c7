"""The commands of the command line, one module per concern; each imports what it needs when it runs."""
