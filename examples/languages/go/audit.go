package main

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

type user struct {
	name  string
	roles []string
}

// audit makes the current request's span an audit record: who did what, to what. Call it as soon as it is known what the request
// wants, before anybody decides whether it may: then a refusal is a record too. Call it again with what becomes known later; the
// last word counts. The outcome comes from the response's status. who is whom you have verified, nil when nobody is signed in.
func audit(ctx context.Context, action, targetType, targetID string, who *user) {
	span := trace.SpanFromContext(ctx)
	span.SetAttributes(
		attribute.String("audit.action", action),
		attribute.String("audit.target.type", targetType),
		attribute.String("audit.target.id", targetID),
	)
	if who == nil {
		span.SetAttributes(attribute.String("audit.actor.id", "anonymous"))
		return
	}
	span.SetAttributes(
		attribute.String("audit.actor.id", who.name),
		attribute.String("audit.actor.type", "user"),
		attribute.StringSlice("audit.actor.roles", who.roles),
		attribute.String("audit.actor.auth_method", "bearer"),
		// Counts where the collector knows the sender as one that may say so.
		attribute.String("audit.actor.origin", "authenticated"),
	)
}
