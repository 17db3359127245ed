"""The meters of responses, messages, embeddings and Ollama's endpoints, and the requests that lead to them."""
