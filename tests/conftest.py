"""What every test may ask for: real databases, a real model server. Nothing leaves the loopback interface."""

pytest_plugins = ("tests.support.fixtures", "tests.inference.fixtures")
