"""What makes a plugin one: hooks, registration, entry points, WSGI middleware as plugins, attribution of failures."""
