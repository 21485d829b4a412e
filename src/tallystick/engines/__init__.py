"""The kinds of engines: a server at a URL, llama.cpp in this process.

`http`: an OpenAI-compatible server. `llama`: llama.cpp, loaded here. `dialect`: what servers differ in.
`reading`: one reply, bytes in and pieces out. `refusals`: what it means when a server says no.
"""
