"""TLS for both sides of the gateway: certificates from files, and TLS on a socket that the caller reads, polls and times."""
