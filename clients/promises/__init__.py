"""The durable promises. This changes with the Resonate SDK and its server."""
