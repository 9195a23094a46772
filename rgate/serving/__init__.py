"""The client's side: a Werkzeug server whose connections speak HTTP/1.1 through our own code."""
