"""The program as its users see it: the command line and the gateway, whole."""
