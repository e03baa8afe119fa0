"""``gb10 doctor``: what of this machine stops a server or slows it down, and what mends that.

`gather` looks at the machine once and gives `Facts`; each check is a function of these alone, so a recorded
machine is judged like one's own.
"""
