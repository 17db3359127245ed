"""What every test may ask for: real databases, a real model server. Nothing leaves the loopback interface.

Properties are tried with the same examples in each run of the fast suite, so that what is green stays green on another
machine; `make test-slow` tries others each time, and more of them.
"""

from hypothesis import settings

pytest_plugins = ("tests.support.fixtures", "tests.inference.fixtures")

settings.register_profile("same", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("explore", derandomize=False, database=None, deadline=None, print_blob=True)
settings.load_profile("same")
