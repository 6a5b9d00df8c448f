"""What is tried by hand: needs root, or takes long."""
