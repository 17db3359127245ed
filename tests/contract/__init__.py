"""One suite per port, run against every adapter, and the checks that keep the emulators honest."""
