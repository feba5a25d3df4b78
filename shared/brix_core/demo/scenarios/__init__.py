"""The scenarios, a module each. To add one, add a module with ``SCENARIOS``; nothing else needs to know.

It sees frameworks only through the `Stage` it plays on, so it runs on all of them.
"""
