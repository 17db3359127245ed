"""All tests of Weir, the emulators they run against, and the real model server they measure."""
