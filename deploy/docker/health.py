"""Say whether a service is healthy, as an exit status, for a container's health check.

    python health.py 127.0.0.1:4317                 gRPC health (grpc.health.v1), the server as a whole
    python health.py http://127.0.0.1:8000/health   any answer of 200

Exit 0 when it serves, 1 with a reason when not, 2 when it was called wrongly. Needs grpcio-health-checking for
the first kind and nothing beside Python for the second.
"""

from __future__ import annotations

import sys
import urllib.request

TIMEOUT_S = 3.0


def grpc_problem(address: str) -> str:
    """Empty when the gRPC server at *address* says SERVING, else why not."""
    import grpc  # noqa: PLC0415 - not needed, and perhaps not there, for HTTP
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415 - as above

    with grpc.insecure_channel(address) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check
            status = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status
        except grpc.RpcError as problem:
            return f"{problem.code().name}: {problem.details()}"
    serving = status == health_pb2.HealthCheckResponse.SERVING
    return "" if serving else str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def http_problem(url: str) -> str:
    """Empty when *url* answers 200, else why not."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 - the operator's own URL
            return "" if response.status == 200 else f"status {response.status}"
    except OSError as problem:
        return str(problem)


def main(arguments: list[str]) -> int:
    """The exit status."""
    if len(arguments) != 1 or ":" not in arguments[0]:
        print("usage: health.py HOST:PORT | http://HOST:PORT/PATH", file=sys.stderr)
        return 2
    target = arguments[0]
    problem = http_problem(target) if target.startswith("http://") else grpc_problem(target)
    if problem:
        print(f"{target}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
