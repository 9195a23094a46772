"""The log and the streams that it goes to."""
