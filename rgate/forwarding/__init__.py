"""The backend's side: one attempt at one endpoint, over pooled connections."""
