"""The chain: the exchange, the scope around it, the order of the middleware, and the dispatch to a route's own part."""
