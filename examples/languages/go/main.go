// A small service of orders. Only the call of audit is for the audit trail.
package main

import (
	"context"
	"log"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

var users = map[string]*user{
	"Bearer alice-token": {name: "alice", roles: []string{"support", "sales"}},
	"Bearer bob-token":   {name: "bob", roles: []string{"sales"}},
}

func refund(w http.ResponseWriter, r *http.Request) {
	who := users[r.Header.Get("Authorization")] // however you verify it
	audit(r.Context(), "REFUND", "orders", r.PathValue("id"), who)
	switch {
	case who == nil:
		http.Error(w, "who are you?", http.StatusUnauthorized)
	case !slices.Contains(who.roles, "support"):
		http.Error(w, "only support may", http.StatusForbidden)
	default:
		_, _ = w.Write([]byte(`{"refunded": "` + r.PathValue("id") + `"}`))
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	// OpenTelemetry's own SDK, set up by its own variables: OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT and so on.
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		log.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})

	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders/{id}/refund", refund)
	server := &http.Server{
		Addr:    "127.0.0.1:" + os.Getenv("PORT"),
		Handler: otelhttp.NewHandler(mux, "orders"),
	}
	go func() {
		<-ctx.Done()
		_ = server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	_ = provider.Shutdown(context.Background()) // sends what still waits
}
