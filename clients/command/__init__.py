"""What starts and ends a command: exit statuses, messages, Ctrl-C, outages and their time limits."""
