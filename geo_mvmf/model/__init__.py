"""What is learnt: the only importer of torch."""
