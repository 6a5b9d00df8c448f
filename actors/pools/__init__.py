"""Teacher, judge and rollout pools: where they live, and how a rank asks them."""
