"""The calls that are served, by object: tables from a request or a system call to a function. They are the list."""
