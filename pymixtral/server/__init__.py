"""The server: a model behind the HTTP interface of OpenAI. `pymixtral serve` runs it.

It needs the packages of the extra [server].
"""
