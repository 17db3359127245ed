"""What tests stand on: real servers started and ended by the tests themselves.

Nothing here knows the product, so that a fault of the product cannot hide in its own test equipment.
"""
