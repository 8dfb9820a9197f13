"""The two stores. This changes with TigerBeetle, SQLite, PostgreSQL and the table of rows."""
