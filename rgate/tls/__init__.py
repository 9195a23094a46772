"""What both sides of the gateway speak TLS with: certificates out of files, and TLS on a socket that is otherwise ours."""
