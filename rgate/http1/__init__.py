"""HTTP/1.1 as bytes: the rules that both sides of the gateway share. Nothing here does I/O (RFC 9110, 9112, 3986)."""
