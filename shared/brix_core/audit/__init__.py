"""The audit log: what was called, when and at what price, in files that tell when they were changed.

A call's way through here: the observability guard makes its trace entry, `log.AuditLog` queues it and writes it from a
thread of its own (`lines` says how a line looks, `directory` how several processes share a folder), and
`verify.verify` reads it again.
"""
