"""In the process that answers HTTP: whether the model still answers sense, and what really runs.

`install` hands `endpoints.Endpoints` to vLLM, which calls it when its application is made. That asks the
model a first canary (`canary`, judged by `judge`) before the port answers, watches it later (`health`), and
answers ``/health`` and ``/v1/gb10/routing``.
"""
