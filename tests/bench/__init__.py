"""What the gateway costs, against the field, in one interleaved run: `make bench`.

The gateway under test has one core for itself. A stand-in model server and the load generator, both in C,
share the other. In each round every scenario is run against each gateway in turn, so that a noisy spell of
the machine hits all of them; figures are medians over the rounds, ratios are medians of each round's ratio.

How to read the figures
- Trust ratios and CPU. Absolute rates and tails move with the machine and its neighbours.
- `CPU us/request` is user and system time of the gateway's processes, divided by the answers that came whole.
  1,000,000 divided by it is what one core carries at most; `requests/s` is what it did carry, which at one
  connection is bounded by latency. For streams it is divided by the tokens that came.
- `/ nginx` and `/ direct` compare with the same round's nginx (a bare reverse proxy: no key, no usage, no
  record) and with no gateway at all. `direct` also shows how far the load and the stand-in are from being
  the bottleneck.
- `litellm /` says how many times as much CPU LiteLLM took in the same round.
- `added TTFT` is the median time from request to first token, less that of `direct`; read it where the
  streams come one at a time, for under load it has the wait behind others in it. `late` is how long after
  its ideal instant an event came: that of `direct` is the stand-in's and the machine's own.
- `bytes`: `exact` if the events came through byte for byte, `rewritten` if a gateway re-wrote them.
- A gateway that can't keep the pace has unfinished streams at the deadline; its cost per event is then that
  of what it did deliver.
- `RSS` is the most that was seen, over all processes of the gateway, shared pages counted in each.
- Weir runs strict: an answer's last bytes leave after its usage row is on the disk (SQLite, synchronous).
  Behind its rounds the rows are counted against the answers that came, and the money is added up. The disk
  is that of the checkout: what fsync costs there is in Weir's figures.
- LiteLLM runs without its database, so it records nothing durably; with one it is slower.

Benchmarks are no tests: nothing here runs under pytest, and a slow figure fails nothing. Money that doesn't
add up does: the exit code is 1.
"""
