"""Pages for people, each one self-contained HTML file: what training sees, and how a run went.

`curves` draws a run's metrics, `show` some samples as both sides get them. No script, nothing from a network.
"""
