"""Drivers perform the effects of guards. They alone know whether we are in asyncio."""

from brix_core.drivers.blocking import run, run_stream
from brix_core.drivers.eventloop import arun, arun_stream

__all__ = ["arun", "arun_stream", "run", "run_stream"]
