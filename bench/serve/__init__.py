"""Engines measured from outside: a server that speculates beside a plain one, under load."""
