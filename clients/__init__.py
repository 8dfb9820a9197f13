"""What `create_account.py` is injected with: the two stores, the durable promises, and their settings."""
