// OpenTelemetry's own SDK, set up by its own variables: OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT and so on.
// Nothing here is Auditspan's.
"use strict";

const { HttpInstrumentation } = require("@opentelemetry/instrumentation-http");
const { NodeSDK } = require("@opentelemetry/sdk-node");

const sdk = new NodeSDK({ instrumentations: [new HttpInstrumentation()] });
sdk.start();

process.on("SIGTERM", async () => {
  await sdk.shutdown().catch(console.error); // sends what still waits
  process.exit(0);
});
