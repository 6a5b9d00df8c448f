"""Where the method runs: Ray actors, their placement and their pools. Knows vcrd_ray, never jobs."""
