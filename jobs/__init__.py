"""What you submit: one entry point a job. Knows the actors and the method; nothing imports this package."""
