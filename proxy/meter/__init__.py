"""Sans-IO meters: an upstream's bytes in; the client's bytes, and what was used, out.

A meter knows no socket, clock, price table or database. `receive` gives the bytes that may leave now; the bytes that
end a response are only to be had from `finish`, together with the usage that has to be recorded before they leave
(invariant I1).

    framing    events of a stream (WHATWG server-sent events), byte for byte
    reading    usage objects of the OpenAI shape → billing.usage.Usage
    stream     chat and text completions, streamed
    whole      the same, not streamed
    gathered   a stream gathered into one answer (llama.cpp, not streamed); `gathered_typed`: of the other protocols

Quirks of servers that these normalise (measured: llama.cpp b11549, vLLM 0.32, transformers 5.19; read in source:
SGLang 0.5.23, Ollama 2026-08):

    usage on a last chunk with `choices: []`       llama.cpp chat, vLLM, SGLang: hidden if the client did not ask
    usage on the finish chunk, choices not empty   llama.cpp /v1/completions, transformers: passed as it is
    usage on every chunk, cumulative               vLLM, SGLang `continuous_usage_stats`: the last one counts
    running counts of one output each, n > 1       vLLM: only the report without choices is about all
    reasoning that no event shows                  vLLM `include_reasoning: false`: running counts, asked for and hidden
    a zero usage on every chunk                    Ollama /v1/completions: zeros are no report
    usage twice                                    the later one counts, and what it leaves out is kept from the earlier
    no output reported, but text delivered         no report: the text is counted
    no usage, but `timings`                        llama.cpp: its counters on the last event, cut streams included
    one usage per output, n > 1 or prompt arrays   llama.cpp streams: outputs added up, see `stream`
    usage of the first output only                 llama.cpp not streamed, n > 1: asked as a stream, see `gathered`
    `usage: null` on other chunks                  OpenAI's convention: no usage
    no `[DONE]`                                    transformers: the end of the body ends the stream, if a usage or a
                                                   `finish_reason` came; else it broke off
    a prompt of 0                                  LM Studio, Ollama: counted; the output is billed as told
    `timings` on the finish chunk                  llama.cpp puts them on the usage chunk where it is asked for one: a
                                                   client that did not ask for usage does not see them through Weir
    an end without its empty line, or `[DONE]`     read as if it had one
    NaN, half a surrogate pair beside a report     Python's JSON writer: read leniently, see `reading.parse`
    `error` events inside a 200                    everywhere: outcome upstream_error
"""
