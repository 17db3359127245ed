"""Real inference for tests and the demo: a tiny scripted Qwen3.5 model behind a real llama.cpp server."""
