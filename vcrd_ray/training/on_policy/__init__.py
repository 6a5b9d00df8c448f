"""Student responses regenerated while the student trains: who may learn from which, what is sent, and how it is checked."""
