"""What runs in actors: plain classes that answer requests that hold all they need, so that they can be tested without Ray."""
