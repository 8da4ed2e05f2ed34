"""An HTTP/1.1 server on trio streams. h11 parses and frames; this package adds limits, timeouts and isolation.

Import the modules themselves: `limits` is standard library only, and the description of the API needs nothing else.
"""
