"""Properties of what reads bytes from strangers, for a fuzzer and for the tests. See README.md."""
