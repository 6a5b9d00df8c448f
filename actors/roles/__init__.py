"""What runs in actors: plain classes, testable without Ray. They answer requests that hold all they need."""
