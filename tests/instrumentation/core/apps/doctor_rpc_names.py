"""The same service in all the ways that the doctor takes it."""

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

SAME = [
    trace_service_pb2,
    trace_service_pb2.DESCRIPTOR,
    trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"],
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
    grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        {"Export": grpc.unary_unary_rpc_method_handler(lambda request, _: request)},
    ),
]
