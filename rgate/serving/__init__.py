"""The client's side of the gateway: a WSGI server, based on Werkzeug's, with its own HTTP/1.1 connections on epoll."""
