"""A Flask service beside another vendor's span processor, added before Auditspan or after it.

Flask, because there the record is written when the span ends, after the vendor was told.
"""

import os
from pathlib import Path

from flask import Flask
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

NOTED = Path(os.environ["NOTED"])


class Vendor(SpanProcessor):
    def on_start(self, span, parent_context=None):
        span.set_attribute("vendor.seen", "start")

    def on_end(self, span):
        if os.environ["VENDOR"] == "raises":
            raise RuntimeError("the vendor's own failure")
        with NOTED.open("a") as file:
            file.write(f"{span.name} {sorted(span.attributes)}\n")


class EndsEarly(Vendor):
    """Ends what it sees a second time, as tools do that close what was left open."""

    def on_end(self, span):
        super().on_end(span)
        self.last.end()

    def on_start(self, span, parent_context=None):
        super().on_start(span)
        self.last = span


vendor = EndsEarly() if os.environ["VENDOR"] == "ends" else Vendor()
if os.environ["ORDER"] == "before":
    from auditspan.bootstrap import pre_instrument
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    provider = TracerProvider()
    provider.add_span_processor(vendor)
    trace.set_tracer_provider(provider)
    pre_instrument()
    FlaskInstrumentor().instrument()
    import flask

    app = flask.Flask(__name__)
else:
    trace.get_tracer_provider().add_span_processor(vendor)
    app = Flask(__name__)


@app.put("/orders/<int:order_id>")
def update(order_id):
    return {"order": order_id}


if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]))
