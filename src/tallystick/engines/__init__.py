"""The kinds of engines: servers at URLs, llama.cpp in this process.

`configured`: the one that a host's settings name. `fleet`: several as one. `http`: a server, which a
`connection` reaches. `llama`: llama.cpp, loaded here from a `gguf`. `dialect`: what servers differ in.
`reading`: one reply, bytes in and pieces out. `provisional`: its counts where the server tells none on the
way. `prompts`, `tokenizer`: how a prompt is counted. `refusals`: what it means when a server says no.
"""
