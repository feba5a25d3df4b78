from tests.support.servers import demo_server, server

__all__ = ["demo_server", "server"]
