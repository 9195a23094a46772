"""Shared by the tests of several folders: servers and gateways under test, scripted clients, and waiting."""
