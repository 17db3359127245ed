"""Tests of `billing/tokens`: our counts against published fingerprints, real servers' counts and another
library."""
