"""How a process begins and ends: what it is started with, what tells it to end, and what takes over from it."""
