"""The student group under Ray Train, and what each rank leaves and hears."""
