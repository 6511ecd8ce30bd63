"""One module for each kind of thing that the service answers about."""
