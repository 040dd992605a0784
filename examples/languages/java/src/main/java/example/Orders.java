package example;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.Scope;
import io.opentelemetry.context.propagation.TextMapGetter;
import io.opentelemetry.sdk.OpenTelemetrySdk;
import io.opentelemetry.sdk.autoconfigure.AutoConfiguredOpenTelemetrySdk;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** A small service of orders. Only the call of Audit.record() is for the audit trail. */
public final class Orders {
  private static final Pattern REFUND = Pattern.compile("/orders/(\\d+)/refund");
  private static final Map<String, Audit.User> USERS =
      Map.of(
          "Bearer alice-token", new Audit.User("alice", List.of("support", "sales")),
          "Bearer bob-token", new Audit.User("bob", List.of("sales")));

  // OpenTelemetry's own SDK, set up by its own variables: OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT and so on.
  private static final OpenTelemetrySdk SDK =
      AutoConfiguredOpenTelemetrySdk.builder().disableShutdownHook().build().getOpenTelemetrySdk();
  private static final Tracer TRACER = SDK.getTracer("orders");

  private Orders() {}

  public static void main(String[] arguments) throws IOException {
    int port = Integer.parseInt(System.getenv("PORT"));
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
    server.createContext("/", Orders::traced);
    server.start();
    Runtime.getRuntime()
        .addShutdownHook(
            new Thread(
                () -> {
                  server.stop(5); // seconds at most, until requests that are being served have ended
                  SDK.close(); // sends what still waits
                }));
  }

  /** What OpenTelemetry's Java agent does by itself: the span of a request, current while it is served. */
  private static void traced(HttpExchange exchange) throws IOException {
    Context caller =
        SDK.getPropagators().getTextMapPropagator().extract(Context.root(), exchange, new RequestHeaders());
    Span span =
        TRACER
            .spanBuilder(exchange.getRequestMethod())
            .setParent(caller)
            .setSpanKind(SpanKind.SERVER)
            .setAttribute("http.request.method", exchange.getRequestMethod())
            .setAttribute("url.path", exchange.getRequestURI().getPath())
            .setAttribute("network.peer.address", exchange.getRemoteAddress().getAddress().getHostAddress())
            .startSpan();
    try (Scope ignored = span.makeCurrent()) {
      int status = serve(exchange);
      span.setAttribute("http.response.status_code", status);
      exchange.sendResponseHeaders(status, -1);
    } finally {
      span.end();
      exchange.close();
    }
  }

  private static int serve(HttpExchange exchange) {
    Matcher refund = REFUND.matcher(exchange.getRequestURI().getPath());
    if (!exchange.getRequestMethod().equals("POST") || !refund.matches()) {
      return 404;
    }
    String credential = exchange.getRequestHeaders().getFirst("Authorization");
    Audit.User user = credential == null ? null : USERS.get(credential); // however you verify it
    Audit.record("REFUND", "orders", refund.group(1), user);
    if (user == null) {
      return 401;
    }
    return user.roles().contains("support") ? 200 : 403;
  }

  private static final class RequestHeaders implements TextMapGetter<HttpExchange> {
    @Override
    public Iterable<String> keys(HttpExchange exchange) {
      return exchange.getRequestHeaders().keySet();
    }

    @Override
    public String get(HttpExchange exchange, String name) {
      return exchange.getRequestHeaders().getFirst(name);
    }
  }
}
