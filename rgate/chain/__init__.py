"""The chain: the exchange, the middleware around it in their order, and the hand-over to a route's own part."""
