"""`make demo`: the main job in a minute, with real local inference; leaves nothing running and nothing behind.

    stage      the real processes: llama.cpp with the scripted test model, Weir on SQLite, the Stripe double
    screen     what the terminal shows
    __main__   the story

Everything that an admin would do is done by the `weir` command, everything that a customer would do by the official
`openai` client, everything that Stripe would do by the double, which is checked against Stripe's OpenAPI document.
"""
