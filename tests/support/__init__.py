"""What tests of several folders share: servers and gateways under test, clients in the test's hands, and waiting."""
